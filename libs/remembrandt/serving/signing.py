"""URLs that open one picture for a while, without a key: for `<img>` tags, and as the URLs of OpenAI's API are."""

import hashlib
import hmac
import time
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
        values = {name: str(value) for name, value in query.items() if value is not None} | {"expires": str(expires)}
        return f"{quote(path)}?{urlencode({**values, 'signature': self._signature(path, values)})}"

    def is_valid(self, path: str, query: dict[str, str]) -> bool:
        """Whether a request's path and query carry a signature of ours that has not expired."""
        values = {name: value for name, value in query.items() if name != "signature"}
        right = hmac.compare_digest(self._signature(path, values), query.get("signature", ""))
        try:
            return right and int(values.get("expires", "0")) > time.time()
        except ValueError:
            return False

    def _signature(self, path: str, values: dict[str, str]) -> str:
        signed = path + "?" + urlencode(sorted(values.items()))
        return hmac.new(self._key, signed.encode(), hashlib.sha256).hexdigest()[:40]
