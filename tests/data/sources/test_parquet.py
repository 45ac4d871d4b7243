"""Parquet tables of images as a source."""

import io
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from remembrandt.data.sources import open_source
from remembrandt.data.sources.parquet import ParquetConfig
from remembrandt.errors import SourceError


def table(columns, **options):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def img2dataset(first, count, picture, **changes):
    """The columns that img2dataset's parquet output has."""
    numbers = range(first, first + count)
    columns = {
        "jpg": [picture(number) for number in numbers],
        "key": [f"{number:09d}" for number in numbers],
        "caption": [f"caption {number}" for number in numbers],
        "url": ["http://x"] * count,
        "status": ["success"] * count,
        "error_message": pa.array([None] * count, pa.string()),
        "width": [48] * count,
        "similarity": [0.3] * count,
    }
    return columns | changes


def test_img2dataset_output_is_read_and_failed_downloads_are_passed_over(tmp_path, put, picture, read_all, keys):
    failed = img2dataset(
        3, 3, picture, jpg=[picture(3), None, None], status=["success", "failed_to_download", "failed_to_resize"]
    )
    uri = put(tmp_path, {"00001.parquet": table(failed), "00000.parquet": table(img2dataset(0, 3, picture))})
    records = read_all(open_source(ParquetConfig(uri=uri)), 2)
    assert keys(records) == ["000000000", "000000001", "000000002", "000000003"]
    assert records[3].image == picture(3) and records[3].caption == "caption 3"


def test_laion_columns_and_licences_are_understood(tmp_path, put, picture, read_all):
    columns = {
        "image": [{"bytes": picture(1), "path": None}, {"bytes": picture(2), "path": "x.jpg"}],
        "TEXT": ["a dog", None],
        "top_caption": ["unused", "a cat"],
        "license": ["CC0", None],
        "captions": [["hound", "a dog"], None],
        "group": ["g", ""],
        "style": ["oil", None],
        "label": [7, 8],
    }
    uri = put(tmp_path, {"part-0.parquet": table(columns)})
    config = ParquetConfig(uri=uri, fields=("label", "style"), licence="unknown")
    dog, cat = read_all(open_source(config))
    assert (dog.key, dog.caption, dog.captions, dog.group, dog.licence) == ("part-0/0", "a dog", ("hound",), "g", "CC0")
    assert (cat.key, cat.caption, cat.licence, cat.image) == ("part-0/1", "a cat", "unknown", picture(2))
    assert dog.fields == {"label": "7", "style": "oil"} and cat.fields == {"label": "8", "style": ""}


def test_default_fields_are_those_that_the_first_rows_have(tmp_path, put, picture):
    uri = put(tmp_path, {"0.parquet": table({"jpg": [picture(1)], "style": ["x"], "artist": [None], "entity": ["y"]})})
    assert open_source(ParquetConfig(uri=uri)).field_names == ("entity", "style")


def test_paths_lead_to_images(tmp_path, put, picture, read_all):
    absolute = tmp_path / "elsewhere" / "b.jpg"
    put(tmp_path / "elsewhere", {"b.jpg": picture(2)})
    columns = {"image_path": ["a.jpg", str(absolute), f"file://{absolute}", "gone.jpg", ""], "caption": list("abcde")}
    uri = put(tmp_path / "tables", {"0.parquet": table(columns), "a.jpg": picture(1)})
    records = read_all(open_source(ParquetConfig(uri=uri)))
    assert [record.image for record in records[:3]] == [picture(1), picture(2), picture(2)]
    assert "gone.jpg: it does not exist" in records[3].problem
    assert records[4].problem == "its image_path is empty"


def test_relative_paths_can_start_from_another_folder(tmp_path, put, picture, read_all):
    images = put(tmp_path / "images", {"x/a.jpg": picture(1)})
    uri = put(tmp_path / "tables", {"0.parquet": table({"location": ["x/a.jpg"]})})
    (record,) = read_all(open_source(ParquetConfig(uri=uri, path="location", images=images)))
    assert record.image == picture(1)


def test_the_files_layout_of_img2dataset_is_read(tmp_path, put, picture, read_all):
    columns = img2dataset(0, 2, picture)
    del columns["jpg"]
    files = {"00000.parquet": table(columns), "00000/000000000.jpg": picture(5), "00000/000000001.jpg": picture(6)}
    records = read_all(open_source(ParquetConfig(uri=put(tmp_path, files))))
    assert [record.image for record in records] == [picture(5), picture(6)]


def test_tables_without_images_say_what_to_do(tmp_path, put, picture):
    columns = {"URL": ["http://x"], "TEXT": ["a"]}
    uri = put(tmp_path / "urls", {"0.parquet": table(columns)})
    with pytest.raises(SourceError, match=r"no column with images.*URL, TEXT.*img2dataset"):
        open_source(ParquetConfig(uri=uri))
    uri = put(tmp_path / "shards", {"0.parquet": table(columns), "0.tar": b""})
    with pytest.raises(SourceError, match=r"are in 0\.tar: use kind: webdataset"):
        open_source(ParquetConfig(uri=uri))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "jpeg"}, r"no column 'jpeg': did you mean 'jpg'"),
        ({"key": "keys"}, r"no column 'keys': did you mean 'key'"),
        ({"fields": ("captoin",)}, r"no column 'captoin': did you mean 'caption'"),
    ],
)
def test_a_missing_column_is_named_with_the_nearest(tmp_path, put, picture, settings, message):
    uri = put(tmp_path, {"0.parquet": table(img2dataset(0, 1, picture))})
    with pytest.raises(SourceError, match=message):
        open_source(ParquetConfig(uri=uri, **settings))


def test_a_later_table_without_the_column_is_named(tmp_path, put, picture):
    uri = put(tmp_path, {"0.parquet": table({"jpg": [picture(1)]}), "1.parquet": table({"png": [picture(1)]})})
    with pytest.raises(SourceError, match=r"1\.parquet has no column 'jpg'"):
        open_source(ParquetConfig(uri=uri)).blocks(10)


@pytest.mark.parametrize("block_size", [1, 3, 10, 25, 40, 1000])
def test_blocks_of_any_size_give_the_same_rows(tmp_path, put, picture, read_all, keys, block_size):
    uri = put(tmp_path, {f"{n}.parquet": table(img2dataset(n * 50, 50, picture), row_group_size=20) for n in range(2)})
    source = open_source(ParquetConfig(uri=uri))
    assert keys(read_all(source, block_size)) == [f"{number:09d}" for number in range(100)]
    assert max(block.stop - block.start for block in source.blocks(block_size)) <= block_size


def test_a_row_group_is_decoded_once_however_many_blocks_it_is(tmp_path, put, picture, read_all, keys, monkeypatch):
    uri = put(tmp_path, {"0.parquet": table(img2dataset(0, 1000, picture), row_group_size=500)})
    source, decoded = open_source(ParquetConfig(uri=uri)), []
    blocks = source.blocks(50)
    iterate = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda *args, **kwargs: decoded.append(kwargs) or iterate(*args, **kwargs)
    )
    assert keys(record for block in blocks for record in source.read(block)) == [f"{n:09d}" for n in range(1000)]
    assert [kwargs["row_groups"] for kwargs in decoded] == [[0], [1]]
    # As another process takes every other block, and a third begins anew.
    assert keys(record for block in blocks[::2] for record in source.read(block))[50] == "000000100"
    assert len(decoded) == 4
    assert keys(source.read(blocks[3])) == [f"{n:09d}" for n in range(150, 200)]


def test_blocks_end_at_row_groups_where_they_can(tmp_path, put, picture):
    uri = put(tmp_path, {"0.parquet": table(img2dataset(0, 50, picture), row_group_size=20)})
    blocks = open_source(ParquetConfig(uri=uri)).blocks(45)
    assert [(block.start, block.stop) for block in blocks] == [(0, 40), (40, 50)]


def test_keys_must_be_unique(tmp_path, put, picture, read_all):
    twice = img2dataset(0, 3, picture, key=["a", "b", "a"])
    uri = put(tmp_path / "one", {"0.parquet": table(twice)})
    records = read_all(open_source(ParquetConfig(uri=uri)), 1)
    assert [bool(record.problem) for record in records] == [False, False, True]
    assert records[2].problem == "key 'a' occurs before in 0.parquet"
    same = table(img2dataset(0, 3, picture))
    uri = put(tmp_path / "two", {"0.parquet": same, "1.parquet": same})
    with pytest.raises(SourceError, match=r"item 0 of 0\.parquet and item 0 of 1\.parquet have the same key"):
        open_source(ParquetConfig(uri=uri)).blocks(10)


def test_a_damaged_table_beside_good_ones_is_a_problem(tmp_path, put, picture, read_all):
    good = table(img2dataset(0, 3, picture))
    uri = put(tmp_path, {"0.parquet": good[:-100], "1.parquet": good, "2.parquet": b""})
    records = read_all(open_source(ParquetConfig(uri=uri)))
    assert [bool(record.problem) for record in records] == [True, False, False, False, True]
    assert records[0].key == "0.parquet" and "damaged parquet file" in records[0].problem


def test_damage_within_a_table_spares_the_rows_before_it(tmp_path, put, picture, read_all):
    data = bytearray(table(img2dataset(0, 60, picture), row_group_size=20, compression="zstd"))
    images = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(2).column(0)
    start = images.dictionary_page_offset or images.data_page_offset
    data[start : start + images.total_compressed_size] = b"\xff" * images.total_compressed_size
    uri = put(tmp_path, {"0.parquet": bytes(data)})
    records = read_all(open_source(ParquetConfig(uri=uri)), 20)
    assert [bool(record.problem) for record in records] == [False] * 40 + [True] * 20


def test_only_damaged_tables_are_refused(tmp_path, put):
    with pytest.raises(SourceError, match=r"0\.parquet: damaged parquet file"):
        open_source(ParquetConfig(uri=put(tmp_path, {"0.parquet": b"PAR1 not"})))


def test_a_pickled_source_and_a_fresh_one_read_a_block_alike(tmp_path, put, picture):
    uri = put(tmp_path, {"0.parquet": table(img2dataset(0, 9, picture))})
    source = open_source(ParquetConfig(uri=uri))
    block = source.blocks(4)[1]
    records = list(source.read(block))
    assert len(records) == 4
    assert records == list(pickle.loads(pickle.dumps(source)).read(block))
    assert records == list(open_source(ParquetConfig(uri=uri)).read(block))


def test_exclusions_and_limit_hold(tmp_path, put, picture, read_all, keys):
    uri = put(tmp_path, {"0.parquet": table(img2dataset(0, 9, picture))})
    config = ParquetConfig(uri=uri, limit=4, exclude={"keys": ["000000001"]})
    assert keys(read_all(open_source(config))) == ["000000000", "000000002", "000000003"]


@pytest.mark.s3
def test_tables_and_paths_on_s3_read_like_local_ones(tmp_path, put, picture, read_all, s3_uri):
    files = {"t/0.parquet": table(img2dataset(0, 50, picture), row_group_size=20)}
    local = read_all(open_source(ParquetConfig(uri=put(tmp_path, files) + "/t")))
    source = open_source(ParquetConfig(uri=put(s3_uri, files) + "/t"))
    assert read_all(pickle.loads(pickle.dumps(source)), 7) == local
    paths = {"path": ["x/1.jpg", f"{s3_uri}/x/2.jpg", "x/3.jpg"]}
    put(s3_uri, {"p/0.parquet": table(paths), "p/x/1.jpg": picture(1), "x/2.jpg": picture(2)})
    records = read_all(open_source(ParquetConfig(uri=f"{s3_uri}/p")))
    assert [record.image for record in records] == [picture(1), picture(2), None]
    assert "does not exist" in records[2].problem
