"""Two hundred malformed uploads, and addresses that a server must not fetch: each refused in one sentence."""

import contextlib
import gzip
import io
import itertools
import lzma
import random
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from PIL import Image

from remembrandt.errors import RemembrandtError
from remembrandt.serving.config import UploadConfig
from remembrandt.serving.errors import TooLargeError, UploadError
from remembrandt.serving.fetch import check_uri, fetch_image, is_public
from remembrandt.serving.uploads import UploadedImage, check_image, image_end, read_archive, read_files, stage
from remembrandt.storage import open_store
from tests.support.service import Client, Service

LIMITS = UploadConfig(max_image_bytes=200_000, max_images=50, max_unpacked_bytes=3_000_000, fetch_urls=True)
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP")


def encoded(kind: str = "PNG", size: tuple[int, int] = (40, 30), seed: int = 0) -> bytes:
    pixels = random.Random(seed).randbytes(size[0] * size[1] * 3)
    data = io.BytesIO()
    Image.frombytes("RGB", size, pixels).save(data, format=kind)
    return data.getvalue()


def archive(members: dict[str, bytes], kind: str = "w") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=kind) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def special(kind: bytes, target: str = "/etc/passwd") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, target
        tar.addfile(info)
    return data.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A header that promises many pixels, and hardly any data behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def malformed_images() -> Iterator[tuple[str, bytes]]:
    for kind, seed in itertools.product(FORMATS, range(3)):
        whole = encoded(kind, seed=seed)
        for share in (0.02, 0.3, 0.6, 0.9):
            yield f"{kind} cut at {share} {seed}", whole[: int(len(whole) * share)]
    tails = {
        "zip": _zip(), "script": b"<script>alert(1)</script>", "php": b"<?php system('id'); ?>",
        "pdf": b"%PDF-1.4\n%%EOF", "png": encoded("PNG"), "elf": b"\x7fELF" + b"\1" * 60, "text": b"hello",
    }  # fmt: skip
    for kind, (name, tail) in itertools.product(FORMATS, tails.items()):
        yield f"{kind} and {name}", encoded(kind) + tail
    for width, height in ((100_000, 100_000), (65_535, 65_535), (6_000, 5_000), (1, 30_000_000)):
        yield f"PNG of {width}×{height}", png_of_size(width, height)
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    yield "svg with declaration", b'<?xml version="1.0"?><svg/>'
    yield "html", b"<!doctype html><img src=x onerror=alert(1)>"
    yield "empty", b""
    yield "zeros", b"\0" * 100
    yield "pdf", b"%PDF-1.4"
    yield "zip", _zip()
    yield "text", b"a picture of a cat"
    yield "tiff", encoded("TIFF")
    yield "ico", encoded("ICO")
    yield "ppm", encoded("PPM")
    yield "too many bytes", encoded("BMP", (400, 300))
    for number in range(30):
        noise = random.Random(number).randbytes(300)
        yield f"noise {number}", noise
        yield f"PNG header and noise {number}", b"\x89PNG\r\n\x1a\n" + noise
    broken = bytearray(encoded("PNG"))
    for place in range(40, 300, 26):
        altered = bytearray(broken)
        altered[place] ^= 0xFF
        yield f"PNG altered at {place}", bytes(altered)


def malformed_archives() -> Iterator[tuple[str, bytes]]:
    good = encoded("PNG")
    for name in ("../a.png", "/etc/a.png", "a/../../b.png", "..\\a.png", "C:\\a.png", "a\\..\\..\\b.png", "./../a.png"):
        yield f"leads to {name}", archive({name: good})
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        yield f"special {kind!r}", special(kind)
    yield "script inside", archive({"a.png": good, "run.sh": b"#!/bin/sh"})
    yield "svg inside", archive({"a.svg": b"<svg/>"})
    yield "no image", archive({"a.txt": b"hello"})
    yield "nothing", archive({})
    yield "too many", archive({f"{n}.png": good for n in range(51)})
    yield "bomb of zeros", gzip.compress(archive({"a.png": b"\0" * 5_000_000}))
    yield "bomb of many", gzip.compress(archive({f"{n}.txt": b"\0" * 90_000 for n in range(60)}))
    yield "large caption", archive({"a.png": good, "a.txt": b"x" * 200_000})
    yield "caption that is not text", archive({"a.png": good, "a.txt": b"\xff\xfe\xff"})
    yield "metadata that is no object", archive({"a.png": good, "a.json": b"[1]"})
    yield "metadata that is not JSON", archive({"a.png": good, "a.json": b"{"})
    yield "metadata that is deep", archive({"a.png": good, "a.json": b"[" * 50_000})
    yield "one bad among good", archive({"a.png": good, "b.png": good[:50], "c.png": good})
    yield "polyglot inside", archive({"a.png": good + _zip()})
    yield "a zip", _zip()
    yield "not a tar", b"hello" * 500
    yield "empty", b""
    whole = archive({"a.png": encoded("PNG", (200, 100))})
    for share in (0.05, 0.2, 0.5):
        yield f"cut at {share}", whole[: int(len(whole) * share)]
        yield f"gz cut at {share}", gzip.compress(whole)[: int(len(gzip.compress(whole)) * share)]


def header(kind: bytes, size: int, content: bytes = b"") -> bytes:
    """A header of that kind, which says that `size` bytes of it follow."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(format=tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % 512)


def pax(values: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    records = b""
    for name, value in values.items():
        body = f" {name}={value}\n".encode()
        length = next(n for n in (len(body) + digits for digits in range(1, 5)) if len(str(n)) == n - len(body))
        records += str(length).encode() + body
    return header(kind, len(records), records)


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small archives that would become large before any member of them is there."""
    picture = archive({"a.png": encoded("PNG")})
    zeros = b"\0" * 60_000_000
    for kind in (b"x", b"g", b"L", b"K", b"X"):
        for name, pack in (("gz", gzip.compress), ("xz", lzma.compress)):
            if name == "gz" or kind == b"x":
                yield f"header {kind!r} {name}", pack(header(kind, len(zeros)) + zeros)
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1", "GNU.sparse.name": "a.png"}
    numbers = b"10000000\n" + b"0\n" * 10_000_000
    yield "sparse map", gzip.compress(pax(sparse) + header(tarfile.REGTYPE, len(numbers)) + numbers)
    yield "sparse file", pax({**sparse, "GNU.sparse.realsize": "100000"}) + picture[:512] + b"0\n".ljust(512, b"\0")
    yield "headers upon headers", pax({"comment": "x"}) * 400 + picture
    yield "many members", header(tarfile.DIRTYPE, 0) * 300 + picture
    yield "headers for all", pax({f"k{n}": "v" for n in range(200)}, tarfile.XGLTYPE) + picture
    yield "odd sparse map", pax({"GNU.sparse.map": "a,b"}) + picture


def _zip() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("../../evil.sh", "rm -rf /")
    return data.getvalue()


IMAGES, ARCHIVES, BOMBS = dict(malformed_images()), dict(malformed_archives()), dict(bombs())


def test_there_are_two_hundred_malformed_uploads() -> None:
    assert len(IMAGES) + len(ARCHIVES) >= 200


@pytest.mark.parametrize("kind", FORMATS)
def test_real_images_are_accepted_whole(kind: str) -> None:
    for seed in range(5):
        data = encoded(kind, (33 + seed, 21), seed)
        assert check_image(data, LIMITS).size == (33 + seed, 21)
        assert image_end(data) == len(data)


@pytest.mark.parametrize("name", IMAGES, ids=str)
def test_a_malformed_image_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises((UploadError, TooLargeError)) as refused:
        check_image(IMAGES[name], LIMITS)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize("name", ARCHIVES, ids=str)
def test_a_malformed_archive_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises((UploadError, TooLargeError)) as refused:
        list(read_archive(io.BytesIO(ARCHIVES[name]), LIMITS))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize("name", BOMBS, ids=str)
def test_an_archive_is_refused_before_it_fills_the_memory(name: str) -> None:
    limits = LIMITS.model_copy(update={"max_unpacked_bytes": 1_000_000_000})
    tracemalloc.start()
    try:
        with pytest.raises((UploadError, TooLargeError)) as refused:
            list(read_archive(io.BytesIO(BOMBS[name]), limits))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_an_archive_is_read_with_its_captions_and_metadata(tmp_path: Path) -> None:
    members = {
        "cats/a.png": encoded(), "cats/a.txt": b"eine Katze", "cats/a.json": b'{"style": "ink"}',
        "b.jpg": encoded("JPEG"), "b.png": encoded(seed=1),
    }  # fmt: skip
    for kind in ("w", "w:gz", "w:bz2", "w:xz"):
        with tempfile.SpooledTemporaryFile() as sent:  # as uploads come
            sent.write(archive(members, kind))
            count, _ = stage(read_archive(cast(BinaryIO, sent), LIMITS), open_store(tmp_path / kind[2:]))
        assert count == 3
    files = sorted(path.name for path in (tmp_path / "gz").iterdir())
    assert files == ["b-2.png", "b.jpg", "cats_a.json", "cats_a.png", "cats_a.txt"]


def test_all_images_of_an_upload_have_a_limit_together() -> None:
    limits = LIMITS.model_copy(update={"max_pixels": 3 * 40 * 30})

    def both(count: int) -> list[Iterator[UploadedImage]]:
        files = [(f"{n}.png", io.BytesIO(encoded())) for n in range(count)]
        return [
            read_files(files, [], limits),
            read_archive(io.BytesIO(archive({f"{n}.png": encoded() for n in range(count)})), limits),
        ]

    assert [len(list(images)) for images in both(3)] == [3, 3]
    for images in both(4):
        with pytest.raises(TooLargeError, match="pixels together"):
            list(images)


def test_names_of_files_are_made_plain_and_each_once() -> None:
    good = encoded()
    files = [(name, io.BytesIO(good)) for name in ("../../x.png", "x.png", "", "x.php", "ö ?.png", "a/b\\c.png")]
    names = [image.name for image in read_files(files, [], LIMITS)]
    assert len(set(names)) == 6
    assert all("/" not in name and "\\" not in name and name.endswith(".png") for name in names)


def test_long_names_of_any_script_can_be_files(tmp_path: Path) -> None:
    names = ["画" * 300 + ".png", "画" * 300 + ".jpg", "🐦" * 90, "a" * 300 + ".png"]
    images = read_files([(name, io.BytesIO(encoded())) for name in names], [str(n) for n in range(4)], LIMITS)
    assert stage(images, open_store(tmp_path))[0] == 4
    assert len(list(tmp_path.glob("*.txt"))) == 4


@pytest.mark.ray
def test_nothing_of_a_refused_upload_is_kept(service: Service, tenants: tuple[Client, Client]) -> None:
    alice = tenants[0]
    storage = Path(service.config.storage)
    for name, data in list(IMAGES.items())[::9]:
        files = [("images", ("good.png", encoded(), "image/png")), ("images", ("bad.png", data, "image/png"))]
        answer = alice.post("/v1/databases/upload", data={"name": "refused"}, files=files)
        assert 400 <= answer.status_code < 500, (name, answer.text)
    for name, data in list(ARCHIVES.items())[::4]:
        files = [("archive", ("a.tar", data, "application/x-tar"))]
        answer = alice.post("/v1/databases/upload", data={"name": "refused"}, files=files)
        assert 400 <= answer.status_code < 500, (name, answer.text)
    assert not [path for path in storage.rglob("*") if path.is_file()]
    assert alice.get("/v1/databases/refused").status_code == 404
    assert alice.get("/v1/usage").json()["rows"] == 0


PRIVATE = (
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "203.0.113.7", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1",
    "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::", "fe80::1%eth0", "not an address",
)  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(UploadError, match="public address"):
        fetch_image("http://example.test/a.png", LIMITS, lambda host, port: ["93.184.216.34", address])


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://example.test/a", "gopher://example.test", "http://", "//example.test/a", "a.png",
        "http://user:secret@example.test/", "http://example.test:22/", "https://example.test:8080/",
        "http://localhost/", "http://127.0.0.1/", "http://[::1]/", "http://2130706433/", "http://0x7f000001/",
        "http://017700000001/", "http://127.1/", "http://localhost./", "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://exa mple/", "http://[bad/",
    ],
)  # fmt: skip
def test_urls_that_lead_inside_are_refused(url: str) -> None:
    with pytest.raises(UploadError) as refused:
        fetch_image(url, LIMITS)
    assert "passwd" not in str(refused.value)


def test_a_redirect_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def get(url: str, *_: Any) -> Any:
        asked.append(url)
        return real(url, *_) if len(asked) > 1 else "http://169.254.169.254/latest/meta-data/"

    from remembrandt.serving import fetch

    real = fetch._get
    monkeypatch.setattr(fetch, "_get", get)
    with pytest.raises(UploadError, match="public address"):
        fetch_image("https://example.test/a.png", LIMITS)
    assert len(asked) == 2


def test_urls_are_not_fetched_unless_the_service_says_so() -> None:
    with pytest.raises(UploadError, match="not fetched here"):
        fetch_image("https://example.test/a.png", UploadConfig())


def test_a_real_server_is_asked_at_the_address_that_was_checked(tmp_path: Path) -> None:
    """The address is public as far as the check knows; the connection goes to it and to no other."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from remembrandt.serving import fetch

    hosts: list[str] = []
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hosts.append(self.headers["host"])
            self.send_response(200)
            self.end_headers()
            if "slow" in self.path:
                self.drip()
            else:
                self.wfile.write(encoded() if "large" not in self.path else b"x" * 300_000)

        def drip(self) -> None:
            with contextlib.suppress(OSError):
                while not ended.wait(0.05):
                    self.wfile.write(b"x")

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    patch = pytest.MonkeyPatch()
    patch.setattr(fetch, "is_public", lambda address: True)
    patch.setattr(fetch, "_PORTS", {"http": server.server_port})
    url = f"http://example.test:{server.server_port}/a.png"
    try:
        # The pinned port is not the scheme's own, so that it stands in the target.
        patch.setattr(fetch, "_target", lambda parts, address: f"http://{address}:{server.server_port}{parts.path}")
        assert check_image(fetch_image(url, LIMITS, lambda host, port: ["127.0.0.1"]), LIMITS).size == (40, 30)
        assert hosts == ["example.test"]
        with pytest.raises(TooLargeError):
            fetch_image(url.replace("a.png", "large"), LIMITS, lambda host, port: ["127.0.0.1"])
        hurried = LIMITS.model_copy(update={"fetch_timeout_seconds": 0.5})
        with pytest.raises(UploadError, match=r"more than 0\.5 s"):
            fetch_image(url.replace("a.png", "slow"), hurried, lambda host, port: ["127.0.0.1"])
    finally:
        patch.undo()
        ended.set()
        server.shutdown()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://other/pictures", "s3://public-evil/x", "s3://public/../private", "/etc", "/data/../etc", "/data2",
        "file:///data/x", "s3://public%2f..%2fprivate", "s3://public?x", "data", "", "s3://", "/data\\..\\etc",
    ],
)  # fmt: skip
def test_storage_outside_the_allowed_prefixes_is_refused(uri: str) -> None:
    with pytest.raises(UploadError, match="not allowed"):
        check_uri(uri, ("s3://public", "/data"))


@pytest.mark.parametrize("uri", ["s3://public", "s3://public/a/b", "/data", "/data/x", "/data/./x/"])
def test_storage_below_an_allowed_prefix_is_taken(uri: str) -> None:
    assert check_uri(uri, ("s3://public/", "/data")).startswith(("s3://public", "/data"))


def test_errors_are_ones_that_a_person_can_mend() -> None:
    assert issubclass(UploadError, RemembrandtError) and issubclass(TooLargeError, RemembrandtError)
