"""Retrieval databases of the published RDM code as a source."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from remembrandt.configuration import parse_config
from remembrandt.data.decode import decode_image
from remembrandt.data.patches import cut_box
from remembrandt.data.sources import open_source
from remembrandt.data.sources.rdm import RdmNpzConfig, source_box
from remembrandt.errors import ConfigError, SourceError


def arrays(seed, rows=300, **changes):
    draw = np.random.default_rng(seed)
    left_top = draw.integers(0, 1200 - 256, (rows, 2))
    values = {
        "embedding": draw.normal(size=(rows, 16)).astype(np.float16),
        "img_id": np.arange(rows) // 3,
        "patch_coords": np.concatenate([left_top, left_top + 256], axis=1),
    }
    return values | changes


def npz(compress=True, **values):
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **values)
    return buffer.getvalue()


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("block_size", [1, 70, 1000])
def test_parts_are_read_row_by_row(tmp_path, put, read_all, compress, block_size):
    files = {f"300x16-part_{part}.npz": npz(compress, **arrays(part)) for part in (1, 2)}
    source = open_source(RdmNpzConfig(uri=put(tmp_path, files)))
    records = read_all(source, block_size)
    assert source.has_embeddings and len(records) == 600
    expected = np.concatenate([arrays(part)["embedding"] for part in (1, 2)]).astype(np.float32)
    assert np.array_equal(np.stack([record.embedding for record in records]), expected)
    assert records[400].key == "300x16-part_2/100" and records[400].group == "33"
    assert records[400].box == tuple(arrays(2)["patch_coords"][100])


def test_blocks_can_be_read_in_any_order(tmp_path, put):
    source = open_source(RdmNpzConfig(uri=put(tmp_path, {"0.npz": npz(**arrays(0))})))
    blocks = source.blocks(50)
    forward = {block.start: list(source.read(block)) for block in blocks}
    for block in reversed(blocks):
        again = list(pickle.loads(pickle.dumps(source)).read(block))
        assert [record.key for record in again] == [record.key for record in forward[block.start]]
        assert all(np.array_equal(a.embedding, b.embedding) for a, b in zip(again, forward[block.start], strict=True))
        assert [record.key for record in source.read(block)] == [record.key for record in again]


def test_reading_in_order_decompresses_once(tmp_path, put, monkeypatch):
    source = open_source(RdmNpzConfig(uri=put(tmp_path, {"0.npz": npz(**arrays(0))})))
    blocks = source.blocks(50)
    opened = []
    original = type(source._store).open
    monkeypatch.setattr(type(source._store), "open", lambda store, path: opened.append(path) or original(store, path))
    for block in blocks:
        assert len(list(source.read(block))) == 50
    assert len(opened) == 2


def test_class_ids_become_a_field(tmp_path, put, read_all):
    uri = put(tmp_path, {"0.npz": npz(**arrays(0), class_id=np.arange(300))})
    source = open_source(RdmNpzConfig(uri=f"{uri}/0.npz"))
    assert source.field_names == ("cls",) and read_all(source)[17].fields == {"cls": "17"}


def test_patches_are_found_in_their_images(tmp_path, put, read_all):
    """A patch that the published code would cut, cut from the box that we report, shows the same."""
    small = np.random.default_rng(0).integers(0, 255, (20, 15, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((600, 800), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    resized = image.resize((1200, 1600), Image.Resampling.BICUBIC).crop((0, 200, 1200, 1400))
    coords = np.array([[100, 300, 356, 556], [944, 944, 1200, 1200], [0, 0, 256, 256]])
    values = arrays(0, rows=3, patch_coords=coords, img_id=np.zeros(3, int))
    put(tmp_path / "images", {"x/picture.png": buffer.getvalue()})
    put(tmp_path, {"list.txt": b"x/picture.png\n"})
    uri = put(tmp_path / "database", {"0.npz": npz(**values)})
    config = RdmNpzConfig(uri=uri, image_list=str(tmp_path / "list.txt"), images=str(tmp_path / "images"))
    for record, box in zip(read_all(open_source(config)), coords, strict=True):
        assert record.group == "x/picture.png"
        patch = cut_box(decode_image(record.image), record.box, 256)
        assert np.abs(np.asarray(patch, int) - np.asarray(resized.crop(tuple(box)), int)).mean() < 1.5


@pytest.mark.parametrize("size", [(600, 800), (800, 600), (1200, 1200), (37, 5000)])
def test_boxes_lie_in_their_image(size):
    for coords in [(0, 0, 256, 256), (944, 944, 1200, 1200), (-50, 10, 5000, 20)]:
        left, top, right, bottom = source_box(coords, size, 1200)
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    assert source_box((1, 2, 3, 4), (10, 10), None) == (1, 2, 3, 4)


def test_images_that_cannot_be_found_are_problems(tmp_path, put, picture, read_all):
    values = arrays(0, rows=3, img_id=np.array([0, 1, 7]))
    put(tmp_path / "images", {"list.txt": b"a.jpg\nbroken.jpg\n", "broken.jpg": b"<html>"})
    uri = put(tmp_path / "database", {"0.npz": npz(**values)})
    records = read_all(open_source(RdmNpzConfig(uri=uri, image_list=str(tmp_path / "images/list.txt"))))
    assert "a.jpg: it does not exist" in records[0].problem
    assert records[1].problem == "broken.jpg: not an image: looks like HTML"
    assert records[2].problem == "img_id 7 is outside image_list (2 lines)"


def test_damaged_parts_are_reported_beside_good_ones(tmp_path, put, read_all):
    good = npz(**arrays(1))
    body = bytearray(good)
    body[len(body) // 4 : len(body) // 4 + 40] = b"\xff" * 40
    files = {"0.npz": good[:-200], "1.npz": bytes(body), "2.npz": good}
    source = open_source(RdmNpzConfig(uri=put(tmp_path, files)))
    for block_size in (37, 1000):
        records = read_all(source, block_size)
        assert len(records) == 601
        assert "damaged npz file" in records[0].problem
        assert any(record.problem for record in records[1:301]) and records[300].problem
        assert not any(record.problem for record in records[301:])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vectors": np.zeros((3, 4))}, r"0\.npz: it holds vectors, but embedding, img_id, patch_coords are needed"),
        (arrays(0, rows=3, img_id=np.zeros(2, int)), r"expected \(N, D\), \(N,\), \(N, 4\)"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, put, values, message):
    with pytest.raises(SourceError, match=message):
        open_source(RdmNpzConfig(uri=put(tmp_path, {"0.npz": npz(**values)})))


def test_a_missing_list_is_named(tmp_path, put):
    uri = put(tmp_path, {"0.npz": npz(**arrays(0))})
    with pytest.raises(SourceError, match=r"image_list: .*none\.txt.*does not exist"):
        open_source(RdmNpzConfig(uri=uri, image_list=f"{uri}/none.txt"))
    with pytest.raises(ConfigError, match="images needs image_list"):
        parse_config(RdmNpzConfig, {"uri": uri, "images": uri}, "here")


@pytest.mark.s3
def test_parts_on_s3_read_like_local_ones(tmp_path, put, read_all, s3_uri):
    files = {f"{part}.npz": npz(**arrays(part)) for part in (1, 2)}
    local = read_all(open_source(RdmNpzConfig(uri=put(tmp_path, files))))
    there = read_all(open_source(RdmNpzConfig(uri=put(s3_uri, files))), 90)
    assert [(record.key, record.box) for record in there] == [(record.key, record.box) for record in local]
    assert all(np.array_equal(a.embedding, b.embedding) for a, b in zip(local, there, strict=True))
