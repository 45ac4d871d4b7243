"""Every damaged file of a version is refused by name, and nothing of it is searched."""

import random
from pathlib import Path

import pytest

from remembrandt.databases.catalog import Catalog
from remembrandt.databases.database import Database
from remembrandt.databases.verify import verify_version
from remembrandt.errors import CorruptionError, RemembrandtError

pytestmark = pytest.mark.ray

FLIPS_PER_KIND = 8
CUTS_PER_KIND = 5


def kinds(uri: str) -> dict[str, list[Path]]:
    """All files of the database by kind: row store data, row store metadata, shards, BM25 files, manifest, pointer."""
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(uri).rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            relative = path.relative_to(uri)
            kind = "/".join(relative.parts[2:-1]) or relative.parts[0]
            found.setdefault(f"{kind}/*{path.suffix or path.name}", []).append(path)
    return found


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def refused_by_name(uri: str, path: Path) -> None:
    with pytest.raises(CorruptionError) as caught:
        with Database.open(uri) as database:
            database.search_ids([0], 3)
    assert path.name in str(caught.value), f"{path} was damaged, and the error names another file: {caught.value}"
    assert "\n" not in str(caught.value)


def test_every_kind_of_file_flipped_or_cut_is_refused_by_name(database_copy: str) -> None:
    with Database.open(database_copy) as database:
        assert database.search_ids([0], 3).ids.shape == (1, 3)
    rng, cases = random.Random(0), 0
    by_kind = kinds(database_copy)
    assert len(by_kind) >= 6, sorted(by_kind)
    for files in by_kind.values():
        for damage in [flip] * FLIPS_PER_KIND + [cut] * CUTS_PER_KIND:
            path = rng.choice(files)
            intact = path.read_bytes()
            damage(path, rng)
            if path.read_bytes() == intact:
                continue
            refused_by_name(database_copy, path)
            path.write_bytes(intact)
            cases += 1
    assert cases >= 100
    with Database.open(database_copy) as database:
        assert database.search_ids([0], 3).ids.shape == (1, 3)


def test_missing_and_foreign_files_are_named(database_copy: str) -> None:
    folder = Path(database_copy, "versions", Catalog.open(database_copy).current())
    stranger = folder / "rows.lance" / "_versions" / "1.manifest"
    stranger.write_bytes(b"x")
    refused_by_name(database_copy, stranger)
    stranger.unlink()
    for name in ("vectors/trained.faiss", "vectors/shard-00000.faiss"):
        (folder / name).rename(folder.parent / "aside")
        refused_by_name(database_copy, Path(name))
        (folder.parent / "aside").rename(folder / name)


def test_verify_also_finds_what_hides_behind_an_old_time_stamp(database_copy: str) -> None:
    import os

    catalog = Catalog.open(database_copy)
    manifest = catalog.live_manifest()
    store = catalog.version_store(manifest.version)
    with Database.open(database_copy):
        pass
    path = Path(store.uri, "vectors", "shard-00000.faiss")
    times = path.stat()
    flip(path, random.Random(1))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(CorruptionError, match="shard-00000"):
        verify_version(store, manifest)


def test_a_size_check_alone_finds_truncation(database_copy: str) -> None:
    path = Path(database_copy, "versions", Catalog.open(database_copy).current(), "vectors", "shard-00000.faiss")
    cut(path, random.Random(2))
    with pytest.raises(RemembrandtError, match=r"shard-00000.faiss is damaged: [\d,]+ bytes instead of"):
        Database.open(database_copy, verify="sizes")
