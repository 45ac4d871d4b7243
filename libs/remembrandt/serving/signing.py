"""URLs that open one picture for a while, without a key: for `<img>` tags, and as the URLs of OpenAI's API are."""

import hmac
import time
from functools import lru_cache
from urllib.parse import quote, urlencode


class Signer:
    """Signs paths, and checks signatures.

    Args:
        key: that all replicas share.
        lifetime_seconds: of a signature. Within each half of it the same URL is given, so that browsers' caches work.
    """

    def __init__(self, key: bytes, lifetime_seconds: float) -> None:
        self._key, self._lifetime = key, lifetime_seconds

    def sign(self, path: str, **query: object) -> str:
        """`path` with query, expiry and signature."""
        half = max(1, int(self._lifetime / 2))
        expires = (int(time.time()) // half + 2) * half
        values = tuple((name, str(value)) for name, value in query.items() if value is not None)
        shown, signed = _encoded((*values, ("expires", str(expires))))
        return f"{quote(path)}?{shown}&signature={self._signature(path, signed)}"

    def is_valid(self, path: str, query: dict[str, str]) -> bool:
        """Whether a request's path and query carry a signature of ours that has not expired."""
        _, signed = _encoded(tuple((name, value) for name, value in query.items() if name != "signature"))
        # As bytes: of texts, only ASCII can be compared, and what a client sends may be anything.
        given = query.get("signature", "").encode(errors="replace")
        right = hmac.compare_digest(self._signature(path, signed).encode(), given)
        try:
            return right and int(query.get("expires", "0")) > time.time()
        except ValueError:
            return False

    def _signature(self, path: str, signed: str) -> str:
        return hmac.digest(self._key, f"{path}?{signed}".encode(), "sha256").hex()[:40]


@lru_cache(maxsize=1024)
def _encoded(values: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    """A query as it is shown, and in the order in which it is signed: the same for all rows of an answer."""
    return urlencode(values), urlencode(sorted(values))
