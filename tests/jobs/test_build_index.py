"""`jobs/build_index.py` as a person runs it: a report at the end, and every mistake one clear line."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import REPOSITORY, run_job_here

pytestmark = pytest.mark.ray


def run(arguments: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "jobs/build_index.py", *arguments],
        cwd=REPOSITORY, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def refused(arguments: list[str], *parts: str, environment: dict[str, str] | None = None) -> None:
    """The job ends with a non-zero code and one line on stderr that has all `parts`; nothing is published.

    Args:
        environment: that it runs in, as a process of its own; None: in this one.
    """
    if environment is None:
        code, out, err = run_job_here("build_index", *arguments)
    else:
        result = run(arguments, environment)
        code, out, err = result.returncode, result.stdout, result.stderr
    assert code != 0 and out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in err, err
    for part in parts:
        assert part in errors[0], errors[0]


@pytest.fixture
def arguments(pictures: Path, tiny_clip: Path, tmp_path: Path) -> list[str]:
    return [
        f"uri={tmp_path / 'databases' / 'drawings'}", "source.kind=images", f"source.uri={pictures / 'small'}",
        f"encoder.model={tiny_clip}", "encoder.precision=fp32", "gate.recall_at=10",
    ]  # fmt: skip


@pytest.fixture
def on_cluster(ray_cluster: Any) -> dict[str, str]:
    return {"RAY_ADDRESS": ray_cluster.address}


def test_a_build_reports_what_it_made(arguments: list[str], on_cluster: dict[str, str], tmp_path: Path) -> None:
    result = run([*arguments, "--json"], on_cluster)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["rows"] == 80 and report["recall"]["recall"] >= 0.95
    assert "80 rows with dense ids" in result.stderr
    assert json.loads(run([*arguments, "--json", "--dry-run"]).stdout)["already_built"] is True


def test_an_unknown_key_names_the_nearest(arguments: list[str]) -> None:
    refused(
        [*arguments, "vectors.factori=Flat"], "unknown key 'vectors.factori'", "did you mean 'factory'", environment={}
    )


def test_an_empty_source_is_named(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    place = tmp_path / "empty"
    refused([*arguments, f"source.uri={place}"], f"{place} is empty or does not exist: check its uri")


def test_a_missing_source_is_named(arguments: list[str], tmp_path: Path) -> None:
    refused([*arguments, f"source.uri={tmp_path / 'nowhere'}"], str(tmp_path / "nowhere"))


def test_a_place_that_cannot_be_written_is_named(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused([*arguments, f"uri={tmp_path / 'file' / 'drawings'}"], "cannot write", str(tmp_path / "file"))
    refused([*arguments, "uri=/proc/drawings"], "cannot write /proc/drawings")


def test_wrong_encoders_are_refused(arguments: list[str], database_copy: str) -> None:
    refused([*arguments, "encoder.model=ViT-B-33"], "unknown encoder model 'ViT-B-33'", "ViT-B-32")
    appended = [*arguments, f"uri={database_copy}", "base=current", "encoder=null"]
    refused(appended, "was embedded with", "append with the same encoder")


def test_elasticsearch_that_is_down_at_the_start_is_named(arguments: list[str]) -> None:
    refused(
        [*arguments, "bm25.backend=elasticsearch", "bm25.url=http://127.0.0.1:9", "bm25.retry_seconds=1"],
        "http://127.0.0.1:9",
    )


@pytest.mark.s3
def test_wrong_s3_credentials_are_named(arguments: list[str], s3_uri: str) -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": "wrong"}
    refused(
        [*arguments, f"uri={s3_uri}/drawings"],
        "refuses these credentials",
        "AWS_ACCESS_KEY_ID",
        environment=environment,
    )


def test_pictures_that_are_none_or_far_too_large_are_left_out_by_name(
    arguments: list[str], on_cluster: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "drawing.jpg").write_text('<svg xmlns="http://www.w3.org/2000/svg"></svg>')
    (folder / "page.jpg").write_text("<!DOCTYPE html><html><body>404</body></html>")
    (folder / "huge.png").write_bytes(png_of(20_000, 10_000))
    source = [f"source.uri={folder}"]
    result = run([*arguments, *source], on_cluster)
    assert result.returncode != 0 and "Traceback" not in result.stderr
    for name in ("drawing.jpg", "page.jpg", "huge.png"):
        assert f"left out {name}: " in result.stderr, result.stderr
    assert "error: 3 of 3 items (100.0%) cannot be used" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_one_line_and_the_build_continues_with_space(
    arguments: list[str], on_cluster: dict[str, str], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        target = [*arguments, f"uri={small / 'drawings'}"]
        refused(target, "the disk is full; free some space and run the same command again", environment=on_cluster)
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        result = run([*target, "--json"], on_cluster)
        assert result.returncode == 0 and json.loads(result.stdout)["rows"] == 80, result.stderr
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def png_of(width: int, height: int) -> bytes:
    """A valid white PNG of any size in a few kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(1)
    line = b"\0" + b"\xff" * ((width + 7) // 8)
    body = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
