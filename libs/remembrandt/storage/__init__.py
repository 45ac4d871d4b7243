"""URIs (file, s3), whole-or-nothing writes and atomic pointers."""

from remembrandt.storage.store import ConflictError, Entry, Store, open_store, split_uri

__all__ = ["ConflictError", "Entry", "Store", "open_store", "split_uri"]
