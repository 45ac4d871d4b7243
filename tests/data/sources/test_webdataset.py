"""Tar shards as a source."""

import json
import pickle
import tarfile

import pytest

from remembrandt.data.sources import open_source
from remembrandt.data.sources.webdataset import WebdatasetConfig
from remembrandt.errors import SourceError


@pytest.fixture
def item(picture):
    """item(key, **metadata): the three members of one item."""

    def members(key, number=0, **metadata):
        return [
            (f"{key}.jpg", picture(number)),
            (f"{key}.txt", f"caption of {key}".encode()),
            (f"{key}.json", json.dumps(metadata).encode()),
        ]

    return members


@pytest.fixture
def shards(tmp_path, put, tar, item):
    return put(
        tmp_path / "shards",
        {
            "00001.tar": tar(item("b1", 3, style="noto") + item("b2", 4)),
            "00000.tar": tar(item("a2", 1, style="oil", group="a", licence="MIT") + item("a1", 2, style="ink")),
            "00000.parquet": b"ignored",
            "dataset.json": b"{}",
        },
    )


def test_items_come_by_shard_and_position(shards, read_all, keys, picture):
    source = open_source(WebdatasetConfig(uri=shards))
    records = read_all(source)
    assert keys(records) == ["a2", "a1", "b1", "b2"]
    first = records[0]
    assert first.image == picture(1)
    assert (first.caption, first.group, first.licence) == ("caption of a2", "a", "MIT")
    assert [record.fields["style"] for record in records] == ["oil", "ink", "noto", ""]


def test_blocks_never_cross_shards(shards):
    blocks = open_source(WebdatasetConfig(uri=shards)).blocks(3)
    assert [(block.part, block.start, block.stop) for block in blocks] == [("00000.tar", 0, 2), ("00001.tar", 0, 2)]


@pytest.mark.parametrize("block_size", [1, 7, 64, 100, 1000])
def test_any_block_of_a_long_shard_reads_the_same_items(tmp_path, put, tar, item, read_all, block_size):
    uri = put(tmp_path, {"0.tar": tar([member for n in range(200) for member in item(f"{n:03d}", n % 5)])})
    records = read_all(open_source(WebdatasetConfig(uri=uri)), block_size)
    assert [(record.key, record.caption, record.problem) for record in records] == [
        (f"{n:03d}", f"caption of {n:03d}", None) for n in range(200)
    ]


def test_a_worker_that_has_only_the_configuration_reads_a_block(shards, read_all):
    source = open_source(WebdatasetConfig(uri=shards))
    block = source.blocks(1)[1]
    assert list(open_source(WebdatasetConfig(uri=shards)).read(block)) == list(source.read(block))
    assert list(pickle.loads(pickle.dumps(source)).read(block)) == list(source.read(block))


def test_a_block_reads_its_own_bytes_and_not_the_whole_tar(tmp_path, put, tar, item, monkeypatch):
    uri = put(tmp_path, {"0.tar": tar([member for n in range(640) for member in item(f"{n:03d}")])})
    source = open_source(WebdatasetConfig(uri=uri))
    block = source.blocks(64)[8]
    offsets = []

    def recorded(store, path):
        stream = original(store, path)
        offsets.append(stream)
        return _Recorder(stream)

    original = type(source._store).open
    monkeypatch.setattr(type(source._store), "open", recorded)
    assert [record.key for record in source.read(block)] == [f"{n:03d}" for n in range(512, 576)]
    assert _Recorder.bytes_read < (tmp_path / "0.tar").stat().st_size * 0.12


class _Recorder:
    bytes_read = 0

    def __init__(self, stream):
        self._stream = stream

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stream.close()

    def seek(self, offset):
        return self._stream.seek(offset)

    def read(self, size):
        data = self._stream.read(size)
        _Recorder.bytes_read += len(data)
        return data


def test_keys_end_at_the_first_dot_and_keep_their_folder(tmp_path, put, tar, picture, read_all):
    members = [
        ("./v1.2/dog.JPG", picture(1)),
        ("./v1.2/dog.txt", b"dog"),
        ("./v1.2/dog.mask.png", b"unused"),
        ("v1.2/cat.left.png", picture(2, "PNG")),
        ("README.md", b"unused"),
        ("v1.2/.thumbs.jpg", b"unused"),
    ]
    uri = put(tmp_path, {"0.tar": tar(members)})
    dog, cat = read_all(open_source(WebdatasetConfig(uri=uri)))
    assert (dog.key, dog.caption, dog.image) == ("v1.2/dog", "dog", picture(1))
    assert (cat.key, cat.image) == ("v1.2/cat", None)
    assert "extension 'left.png'" in cat.problem and "list it under extensions" in cat.problem
    _, cat = read_all(open_source(WebdatasetConfig(uri=uri, extensions=("jpg", "left.png"))))
    assert cat.image == picture(2, "PNG")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_in_every_tar_format(tmp_path, put, tar, item, read_all, keys, format):
    name = "f" * 90 + "/" + "g" * 60 if format == tarfile.USTAR_FORMAT else "ö" * 70 + "/" + "n" * 200
    uri = put(tmp_path, {"0.tar": tar(item(name) + item("short"), format)})
    assert keys(read_all(open_source(WebdatasetConfig(uri=uri)))) == [name, "short"]


def test_cls_files_become_a_field(tmp_path, put, tar, picture, read_all):
    uri = put(tmp_path, {"0.tar": tar([("a.jpg", picture(1)), ("a.cls", b"17")])})
    assert read_all(open_source(WebdatasetConfig(uri=uri)))[0].fields == {"cls": "17"}


def test_items_without_image_or_with_broken_metadata_are_problems(tmp_path, put, tar, picture, read_all):
    members = [("a.txt", b"x"), ("a.json", b"{}"), ("b.jpg", picture(1)), ("b.json", b"{"), ("c.jpg", picture(2))]
    uri = put(tmp_path, {"0.tar": tar(members)})
    assert [(record.key, record.problem) for record in read_all(open_source(WebdatasetConfig(uri=uri)))] == [
        ("a", "it has no image file, only json, txt"),
        ("b", "its metadata is not valid JSON"),
        ("c", None),
    ]


def test_shards_that_share_a_key_are_refused_with_the_remedy(tmp_path, put, tar, item, read_all, keys):
    uri = put(tmp_path, {"0.tar": tar(item("x") + item("y")), "1.tar": tar(item("y"))})
    with pytest.raises(SourceError, match=r"item 1 of 0\.tar and item 0 of 1\.tar have the same key.*shard_in_key"):
        open_source(WebdatasetConfig(uri=uri)).blocks(10)
    records = read_all(open_source(WebdatasetConfig(uri=uri, shard_in_key=True)))
    assert keys(records) == ["0/x", "0/y", "1/y"]


def test_a_key_that_comes_again_within_a_shard_is_a_problem(tmp_path, put, tar, item, read_all):
    uri = put(tmp_path, {"0.tar": tar(item("x") + item("y") + item("x"))})
    for block_size in (1, 10):
        records = read_all(open_source(WebdatasetConfig(uri=uri)), block_size)
        assert [bool(record.problem) for record in records] == [False, False, True]
        assert "occurs before in 0.tar" in records[2].problem


def test_a_truncated_shard_gives_what_is_whole_and_reports_the_rest(tmp_path, put, tar, item, read_all):
    whole = tar([member for n in range(10) for member in item(f"{n}", n)])
    cut = whole.index(b"5.jpg") + 700
    uri = put(tmp_path, {"0.tar": whole[:cut], "1.tar": tar(item("z"))})
    records = read_all(open_source(WebdatasetConfig(uri=uri)), 3)
    assert [record.key for record in records] == ["0", "1", "2", "3", "4", "5", "z"]
    assert [bool(record.problem) for record in records] == [False] * 5 + [True, False]
    assert "truncated: the tar ends within '5.jpg'" in records[5].problem


def test_a_shard_cut_within_a_caption_spoils_that_item_alone(tmp_path, put, tar, item, read_all):
    whole = tar(item("0") + item("1") + item("2"))
    uri = put(tmp_path, {"0.tar": whole[: whole.index(b"1.txt") + 520]})
    records = read_all(open_source(WebdatasetConfig(uri=uri)))
    assert [(record.key, bool(record.problem)) for record in records] == [("0", False), ("1", True)]


@pytest.mark.parametrize("block_size", [1, 2, 64, 500])
def test_a_damaged_header_costs_its_own_file_only(tmp_path, put, tar, item, read_all, block_size):
    data = bytearray(tar([member for n in range(150) for member in item(f"{n:03d}", n % 5)]))
    for name in (b"005.jpg", b"100.txt"):
        start = data.index(name)
        data[start + 148 : start + 156] = b"garbage!"
    uri = put(tmp_path, {"0.tar": bytes(data)})
    records = read_all(open_source(WebdatasetConfig(uri=uri)), block_size)
    good = [record.key for record in records if record.problem is None]
    assert good == [f"{n:03d}" for n in range(150) if n != 5]
    bad = {record.key: record.problem for record in records if record.problem}
    assert bad["005"] == "it has no image file, only json, txt"
    assert sorted(bad.values())[0] == "a damaged tar header" and len(bad) == 3


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 100, b"\0" * 10240])
def test_a_file_that_is_no_tar_beside_good_shards_is_no_exception(tmp_path, put, tar, item, read_all, content):
    uri = put(tmp_path, {"0.tar": content, "1.tar": tar(item("x"))})
    records = read_all(open_source(WebdatasetConfig(uri=uri)))
    assert [record.key for record in records if record.problem is None] == ["x"]
    assert [record.problem for record in records if record.problem] == ["no tar archive"] * content.startswith(b"<")


def test_every_bit_flip_or_cut_of_a_shard_leaves_a_readable_source(tmp_path, put, tar, item, read_all):
    import random

    whole = tar([member for n in range(12) for member in item(f"{n:02d}", n, style="s")])
    draw = random.Random(7)
    for case in range(150):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        if case % 3 == 0:
            del data[draw.randrange(len(data)) :]
        uri = put(tmp_path / str(case), {"0.tar": bytes(data), "1.tar": tar(item("last"))})
        source = open_source(WebdatasetConfig(uri=uri, shard_in_key=True))
        together, singly = read_all(source, 1000), read_all(source, 1)
        assert together == singly
        assert together[-1].key == "1/last" and len(together) >= 2


def test_a_header_that_leads_backwards_is_damage_and_no_endless_loop(tmp_path, put, tar, item, read_all):
    data = bytearray(tar(item("0") + item("1") + item("2")))
    start = data.index(b"1.jpg")
    for size in (b"-0000000777\0", b"\xff" * 11 + b"\x01"):
        data[start + 124 : start + 136] = size
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        uri = put(tmp_path, {"0.tar": bytes(data)})
        records = read_all(open_source(WebdatasetConfig(uri=uri)))
        assert [record.key for record in records if record.problem is None] == ["0", "2"]


def test_a_shard_without_end_marker_is_whole(tmp_path, put, tar, item, read_all, keys):
    data = tar(item("a") + item("b")).rstrip(b"\0")
    uri = put(tmp_path, {"0.tar": data + b"\0" * (-len(data) % 512)})
    assert keys(read_all(open_source(WebdatasetConfig(uri=uri)))) == ["a", "b"]


def test_shards_without_any_item_are_refused(tmp_path, put, tar):
    uri = put(tmp_path, {"0.tar": tar([("README.md", b"x")])})
    with pytest.raises(SourceError, match="holds no items"):
        open_source(WebdatasetConfig(uri=uri)).blocks(10)


def test_limit_and_exclusions_hold(shards, read_all, keys):
    source = open_source(WebdatasetConfig(uri=shards, limit=3, exclude={"keys": ["a1"]}))
    assert keys(read_all(source)) == ["a2", "b1"]


def test_one_shard_can_be_a_source(shards, read_all, keys):
    assert keys(read_all(open_source(WebdatasetConfig(uri=f"{shards}/00001.tar")))) == ["b1", "b2"]


@pytest.mark.s3
def test_shards_on_s3_read_like_local_ones(tmp_path, put, tar, item, read_all, s3_uri):
    files = {f"{s}.tar": tar([m for n in range(150) for m in item(f"{s}{n:03d}", n % 5, style="s")]) for s in range(3)}
    local = read_all(open_source(WebdatasetConfig(uri=put(tmp_path, files))))
    source = open_source(WebdatasetConfig(uri=put(s3_uri, files)))
    assert read_all(source, 40) == local
    assert read_all(pickle.loads(pickle.dumps(source)), 64) == local


@pytest.mark.s3
def test_one_shard_on_s3_can_be_a_source(put, tar, item, read_all, keys, s3_uri):
    put(s3_uri, {"0.tar": tar(item("a")), "1.tar": tar(item("b"))})
    assert keys(read_all(open_source(WebdatasetConfig(uri=f"{s3_uri}/1.tar")))) == ["b"]
