"""Fetching what a client names by URL or URI, from nowhere that the client could not reach itself."""

import asyncio
import ipaddress
import posixpath
import socket
import time
from collections.abc import Callable, Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx

from remembrandt.serving.config import UploadConfig
from remembrandt.serving.errors import TooLargeError, UploadError

_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]


def fetch_image(url: str, config: UploadConfig, resolve: Resolve | None = None) -> bytes:
    """The content of an http(s) URL, by default ports, following at most three redirects.

    All of it together takes `fetch_timeout_seconds` at most, however slowly the bytes come.

    The name is resolved once and the connection goes to that very address, so that it cannot change between check and
    use; every redirect is checked anew.

    Raises:
        UploadError: URLs are not allowed here, another scheme or port, an address that is not public, no answer.
        TooLargeError: more bytes than an image may have.
    """
    if not config.fetch_urls:
        raise UploadError("image URLs are not fetched here: send the image itself")
    until = time.monotonic() + config.fetch_timeout_seconds
    for _ in range(_REDIRECTS + 1):
        answer = _get(url, config, resolve or _resolve, until)
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer)
    raise UploadError(f"the image URL redirects more than {_REDIRECTS} times")


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet, also inside IPv6 forms that carry an IPv4 address."""
    try:
        found: _Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        nat64 = found in ipaddress.ip_network("64:ff9b::/96") or found in ipaddress.ip_network("::/96")
        if nat64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


def check_uri(uri: str, prefixes: Sequence[str]) -> str:
    """A storage URI that lies below one of the prefixes.

    Raises:
        UploadError: it does not.
    """
    scheme, separator, path = uri.partition("://")
    plain = f"{scheme}://{posixpath.normpath(path)}" if separator else posixpath.normpath(uri)
    odd = "\\" in uri or "\0" in uri or "%" in uri or "?" in uri or "#" in uri
    for prefix in prefixes:
        if not odd and (plain + "/").startswith(prefix.rstrip("/") + "/"):
            return plain
    raise UploadError("this storage location is not allowed here: send the images, or ask for it to be allowed")


def _get(url: str, config: UploadConfig, resolve: Resolve, until: float) -> bytes | str:
    """The content, or where a redirect leads."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise UploadError("the image URL cannot be read") from None
    if parts.scheme not in _PORTS or not host or parts.username is not None:
        raise UploadError("an image URL must look like https://host/path")
    if port not in (None, _PORTS[parts.scheme]):
        raise UploadError("an image URL must use its scheme's own port")
    address = _public_address(host, _PORTS[parts.scheme], resolve)
    target = _target(parts, address)
    try:
        return asyncio.run(_ask(target, host, config, until - time.monotonic()))
    except TimeoutError:
        raise UploadError(f"the image URL takes more than {config.fetch_timeout_seconds:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL):
        raise UploadError("the image URL does not answer") from None


async def _ask(target: str, host: str, config: UploadConfig, seconds: float) -> bytes | str:
    """As `_get`. A client that waits in a thread limits each wait alone, and a server can make any number of them."""
    async with (
        asyncio.timeout(max(seconds, 0)),
        httpx.AsyncClient(timeout=None, trust_env=False) as client,
        client.stream("GET", target, headers={"Host": host}, extensions={"sni_hostname": host}) as answer,
    ):
        if answer.is_redirect:
            return str(answer.headers.get("location", ""))
        if answer.status_code != httpx.codes.OK:
            raise UploadError(f"the image URL answered {answer.status_code}")
        data = bytearray()
        async for chunk in answer.aiter_bytes():
            data += chunk
            if len(data) > config.max_image_bytes:
                raise TooLargeError(f"the image URL gives more than {config.max_image_bytes:,} bytes")
        return bytes(data)


def _target(parts: SplitResult, address: str) -> str:
    return parts._replace(netloc=f"[{address}]" if ":" in address else address, fragment="").geturl()


def _public_address(host: str, port: int, resolve: Resolve) -> str:
    """Every address of the host must be public; the first is used. The same words whether it is private or unknown."""
    refused = UploadError("the image URL does not lead to a public address")
    try:
        addresses = list(resolve(host, port))
    except (OSError, UnicodeError):
        raise refused from None
    if not addresses or not all(is_public(address) for address in addresses):
        raise refused
    return addresses[0]


def _resolve(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
