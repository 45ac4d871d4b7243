"""Errors that a person can cause, and therefore mend.

Every message is one line that says what is wrong, where, and what to do. Commands and jobs print it without a
traceback and exit with `exit_code`. Broken invariants are asserts, never one of these.
"""


class RemembrandtError(Exception):
    """Base of every error that the user can act on."""

    exit_code = 2


class ConfigError(RemembrandtError):
    """A configuration value or key that cannot be used."""


class SourceError(RemembrandtError):
    """A source of images or captions that is empty, unreadable or too damaged."""


class StorageError(RemembrandtError):
    """A storage location that cannot be read or written: credentials, permissions, space."""


class CorruptionError(RemembrandtError):
    """A file of a database version that is missing, truncated or altered; the message names it."""


class VersionError(RemembrandtError):
    """A database or version that does not exist, is not published, or has a newer schema."""


class EncoderMismatchError(RemembrandtError):
    """An encoder whose fingerprint is not the one that a database was embedded with."""


class GateError(RemembrandtError):
    """A finished build that failed its checks; the live version has not changed."""


class SearchError(RemembrandtError):
    """A query that cannot be answered: k larger than the database, unknown filter field, missing backend."""


class ServiceError(RemembrandtError):
    """A service that we depend on (Elasticsearch, a Ray cluster) is down or refuses."""


class TrainingError(RemembrandtError):
    """A training run cannot go on."""
