"""Output folders of clip_inference as a source."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from remembrandt.data.sources import open_source
from remembrandt.data.sources.clip_retrieval import ClipRetrievalConfig
from remembrandt.errors import SourceError


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def table(columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def embeddings(number, rows=5, dtype=np.float16):
    return np.random.default_rng(number).normal(size=(rows, 8)).astype(dtype)


@pytest.fixture
def folder(tmp_path, put):
    def metadata(number):
        paths = [f"{number}-{row}.jpg" for row in range(5)]
        return table({"image_path": paths, "caption": [f"c{path}" for path in paths], "style": ["oil"] * 5})

    files = {f"img_emb/img_emb_{n}.npy": npy(embeddings(n)) for n in range(3)}
    files |= {f"metadata/metadata_{n}.parquet": metadata(n) for n in range(3)}
    return put(tmp_path / "output", files | {"text_emb/text_emb_0.npy": npy(embeddings(9))})


@pytest.mark.parametrize("block_size", [1, 2, 100])
def test_embeddings_come_with_their_metadata(folder, read_all, block_size):
    source = open_source(ClipRetrievalConfig(uri=folder))
    records = read_all(source, block_size)
    assert source.has_embeddings and source.field_names == ("style",)
    assert [record.key for record in records] == [f"{n}-{row}.jpg" for n in range(3) for row in range(5)]
    found = np.stack([record.embedding for record in records])
    assert found.dtype == np.float32
    assert np.array_equal(found, np.concatenate([embeddings(n) for n in range(3)]).astype(np.float32))
    assert records[7].caption == "c1-2.jpg" and records[7].fields == {"style": "oil"} and records[7].image is None


def test_images_are_read_if_the_first_one_is_there(folder, put, picture, read_all):
    put(folder, {f"{n}-{row}.jpg": picture(row) for n in range(3) for row in range(5) if (n, row) != (1, 2)})
    records = read_all(open_source(ClipRetrievalConfig(uri=folder)))
    assert records[3].image == picture(3) and records[3].embedding is not None
    assert "1-2.jpg: it does not exist" in records[7].problem
    assert read_all(open_source(ClipRetrievalConfig(uri=folder, images="none")))[3].image is None


def test_images_can_lie_in_another_folder(folder, tmp_path, put, picture, read_all):
    images = put(tmp_path / "images", {f"{n}-{row}.jpg": picture(row) for n in range(3) for row in range(5)})
    records = read_all(open_source(ClipRetrievalConfig(uri=folder, images=images)))
    assert [record.image for record in records] == [picture(row) for _ in range(3) for row in range(5)]


def test_without_paths_the_row_is_the_key(tmp_path, put, read_all, keys):
    files = {
        "img_emb/img_emb_07.npy": npy(embeddings(1)),
        "metadata/metadata_07.parquet": table({"caption": ["x"] * 5}),
    }
    assert keys(read_all(open_source(ClipRetrievalConfig(uri=put(tmp_path, files))))) == [
        f"07/{row}" for row in range(5)
    ]


def test_embeddings_that_are_not_finite_are_problems(folder, put, read_all):
    broken = embeddings(0, dtype=np.float32)
    broken[3, 2] = np.inf
    put(folder, {"img_emb/img_emb_0.npy": npy(broken)})
    records = read_all(open_source(ClipRetrievalConfig(uri=folder)))
    assert [bool(record.problem) for record in records[:5]] == [False, False, False, True, False]


def test_a_truncated_embedding_file_spares_the_rows_before(folder, put, read_all):
    put(folder, {"img_emb/img_emb_1.npy": npy(embeddings(1))[:-40]})
    for block_size in (1, 100):
        records = read_all(open_source(ClipRetrievalConfig(uri=folder)), block_size)
        assert [bool(record.problem) for record in records] == [False] * 7 + [True] * 3 + [False] * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_emb/img_emb_1.npy": npy(embeddings(1, rows=6))}, "img_emb_1.npy has 6 embeddings but .* has 5 rows"),
        ({"img_emb/img_emb_4.npy": npy(embeddings(1))}, "number 4 is not in both img_emb/ and metadata/"),
        ({"img_emb/img_emb_1.npy": npy(np.zeros((5, 9), np.float32))}, "embeddings differ in size"),
        ({"img_emb/img_emb_1.npy": npy(np.zeros(5, np.float32))}, "must be a matrix of floats"),
        ({"img_emb/img_emb_1.npy": b"garbage"}, "cannot be read: damaged array file"),
        ({"metadata/metadata_1.parquet": b"garbage"}, "cannot be read: damaged parquet file"),
    ],
)
def test_folders_that_do_not_fit_together_are_refused(folder, put, changes, message):
    put(folder, changes)
    with pytest.raises(SourceError, match=message):
        open_source(ClipRetrievalConfig(uri=folder))


def test_another_folder_is_refused(tmp_path, put):
    uri = put(tmp_path, {"a/x.npy": npy(embeddings(1))})
    with pytest.raises(SourceError, match=r"has no img_emb/\*\.npy: it must be an output folder of clip_inference"):
        open_source(ClipRetrievalConfig(uri=uri))


def test_repeated_paths_are_refused_over_files_and_reported_within_one(tmp_path, put, read_all):
    meta = table({"image_path": ["a", "b", "c", "d", "a"]})
    files = {"img_emb/img_emb_0.npy": npy(embeddings(0)), "metadata/metadata_0.parquet": meta}
    uri = put(tmp_path, files)
    assert [bool(record.problem) for record in read_all(open_source(ClipRetrievalConfig(uri=uri)))] == [False] * 4 + [
        True
    ]
    put(tmp_path, {"img_emb/img_emb_1.npy": npy(embeddings(0)), "metadata/metadata_1.parquet": meta})
    with pytest.raises(SourceError, match="have the same key"):
        open_source(ClipRetrievalConfig(uri=uri)).blocks(10)


@pytest.mark.s3
def test_folders_on_s3_read_like_local_ones(folder, s3_uri, put, read_all, picture, tmp_path):
    put(folder, {f"{n}-{row}.jpg": picture(row) for n in range(3) for row in range(5)})
    root = tmp_path / "output"
    put(s3_uri, {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()})
    local = read_all(open_source(ClipRetrievalConfig(uri=folder)))
    source = pickle.loads(pickle.dumps(open_source(ClipRetrievalConfig(uri=s3_uri))))
    for here, there in zip(local, read_all(source, 2), strict=True):
        assert np.array_equal(here.embedding, there.embedding)
        assert (here.key, here.caption, here.image) == (there.key, there.caption, there.image)
