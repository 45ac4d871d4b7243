"""Texts without images as a source."""

import gzip
import io
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from remembrandt.data.sources import open_source
from remembrandt.data.sources.texts import TextsConfig
from remembrandt.errors import SourceError
from remembrandt.storage.local import LocalStore


def jsonl(*objects):
    return b"".join(json.dumps(item).encode() + b"\n" for item in objects)


def compressed(name, data):
    if name.endswith(".gz"):
        return gzip.compress(data)
    return pa.compress(data, codec="zstd", asbytes=True) if name.endswith(".zst") else data


LEADS = [
    {"key": f"Q{n}", "text": f"lead {n} of birds", "captions": [f"bird {n}"], "group": f"g{n // 2}"}
    for n in range(5000)
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson"])
@pytest.mark.parametrize("block_size", [700, 1024, 10_000])
def test_json_lines_are_read_in_order(tmp_path, put, read_all, name, block_size):
    uri = put(tmp_path, {name: compressed(name, jsonl(*LEADS))})
    records = read_all(open_source(TextsConfig(uri=uri)), block_size)
    assert [record.key for record in records] == [lead["key"] for lead in LEADS]
    last = records[-1]
    assert (last.caption, last.captions, last.group) == ("lead 4999 of birds", ("bird 4999",), "g2499")
    assert last.image is None and last.embedding is None


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_is_opened_once_for_blocks_in_order(tmp_path, put, name, monkeypatch):
    source = open_source(TextsConfig(uri=put(tmp_path, {name: compressed(name, jsonl(*LEADS))})))
    blocks, opened = source.blocks(500), []
    open_file = LocalStore.open
    monkeypatch.setattr(LocalStore, "open", lambda self, path: opened.append(path) or open_file(self, path))
    assert [record.key for block in blocks for record in source.read(block)] == [lead["key"] for lead in LEADS]
    assert opened == [name]
    assert [record.key for record in source.read(blocks[2])] == [lead["key"] for lead in LEADS[1000:1500]]
    assert [record.key for record in source.read(blocks[6])] == [lead["key"] for lead in LEADS[3000:3500]]


def test_parquet_texts_are_read(tmp_path, put, read_all):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": [1, 2], "text": ["one", ""], "licence": ["MIT", "MIT"]}), buffer)
    one, two = read_all(open_source(TextsConfig(uri=put(tmp_path, {"0.parquet": buffer.getvalue()}))))
    assert (one.key, one.caption, one.licence) == ("1", "one", "MIT")
    assert (two.key, two.problem) == ("2", "it has no text")


def test_parquet_without_text_column_is_refused(tmp_path, put):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"body": ["x"]}), buffer)
    uri = put(tmp_path, {"0.parquet": buffer.getvalue()})
    with pytest.raises(SourceError, match=r"none of the columns caption_keys names \(it has body\)"):
        open_source(TextsConfig(uri=uri))
    assert open_source(TextsConfig(uri=uri, caption_keys=("body",))).blocks(10)


def test_lines_that_cannot_be_used_are_problems_of_their_own(tmp_path, put, read_all):
    data = b'{"text": "a"}\n\n{"text": \n[1]\n{"title": "x"}\n{"text": "\xff"}\n{"text": "last"}'
    records = read_all(open_source(TextsConfig(uri=put(tmp_path, {"0.jsonl": data}))), 2)
    assert [(record.key, record.problem) for record in records] == [
        ("0.jsonl/0", None),
        ("0.jsonl/1", "its line is not valid JSON"),
        ("0.jsonl/2", "its line is not a JSON object"),
        ("0.jsonl/3", "it has no text"),
        ("0.jsonl/4", "its line is not valid JSON"),
        ("0.jsonl/5", None),
    ]


@pytest.mark.parametrize("name", ["0.jsonl.gz", "0.jsonl.zst"])
@pytest.mark.parametrize("block_size", [100, 1024, 10_000])
def test_a_truncated_compressed_file_gives_what_is_whole(tmp_path, put, read_all, name, block_size):
    rows = [{"key": str(n), "text": f"{n * 7919 % 100_003} {n}" * 9} for n in range(60_000)]
    data = compressed(name, jsonl(*rows))
    uri = put(tmp_path, {name: data[: len(data) // 2], "1.jsonl": jsonl({"text": "z"})})
    records = read_all(open_source(TextsConfig(uri=uri)), block_size)
    *good, bad, last = records
    assert len(good) > 1000 and [record.key for record in good] == [str(n) for n in range(len(good))]
    assert not any(record.problem for record in good)
    assert bad.problem.startswith("damaged: ") and last.caption == "z"


def test_keys_must_be_unique(tmp_path, put, read_all):
    uri = put(tmp_path / "one", {"0.jsonl": jsonl({"id": 1, "text": "a"}, {"id": 1, "text": "b"})})
    assert [bool(record.problem) for record in read_all(open_source(TextsConfig(uri=uri)))] == [False, True]
    uri = put(tmp_path / "two", {f"{n}.jsonl": jsonl({"id": 1, "text": "a"}) for n in range(2)})
    with pytest.raises(SourceError, match="have the same key"):
        open_source(TextsConfig(uri=uri)).blocks(10)


def test_mixed_kinds_of_files_are_refused(tmp_path, put):
    uri = put(tmp_path, {"0.jsonl": b"{}", "0.parquet": b""})
    with pytest.raises(SourceError, match="holds both parquet and JSON lines"):
        open_source(TextsConfig(uri=uri))


def test_fields_come_from_the_lines(tmp_path, put, read_all):
    uri = put(tmp_path, {"0.jsonl": jsonl({"text": "a", "source": "wiki"}, {"text": "b"})})
    source = open_source(TextsConfig(uri=uri))
    assert source.field_names == ("source",)
    assert [record.fields["source"] for record in read_all(source)] == ["wiki", ""]


def test_pickled_and_fresh_sources_read_a_block_alike(tmp_path, put):
    uri = put(tmp_path, {"0.jsonl.zst": compressed(".zst", jsonl(*LEADS))})
    source = open_source(TextsConfig(uri=uri))
    block = source.blocks(1500)[2]
    records = list(source.read(block))
    assert records[0].key == "Q3000" and len(records) == 1500
    assert records == list(pickle.loads(pickle.dumps(source)).read(block))
    assert records == list(open_source(TextsConfig(uri=uri)).read(block))


@pytest.mark.s3
def test_texts_on_s3_read_like_local_ones(tmp_path, put, read_all, s3_uri):
    files = {
        name: compressed(name, jsonl(*LEADS[part::3]))
        for part, name in enumerate(("a.jsonl", "b.jsonl.gz", "c.jsonl.zst"))
    }
    local = read_all(open_source(TextsConfig(uri=put(tmp_path, files))))
    assert read_all(open_source(TextsConfig(uri=put(s3_uri, files))), 600) == local
