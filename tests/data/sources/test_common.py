"""Cutting sources into blocks, checking keys, keeping names: the pure parts."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remembrandt.data.records import SourceBlock
from remembrandt.data.sources.common import clean_text, cut_blocks, key_digests, repeated_keys
from remembrandt.data.sources.listing import PackedNames
from remembrandt.data.sources.tar import split_key
from remembrandt.errors import SourceError

boundaries = st.lists(st.integers(1, 40), max_size=6).map(lambda steps: np.cumsum(steps).tolist())


@given(st.lists(boundaries, max_size=5), st.integers(1, 50), st.none() | st.integers(1, 200))
def test_blocks_cover_every_item_once_in_order(parts, block_size, limit):
    named = [(str(number), ends) for number, ends in enumerate(parts)]
    blocks = cut_blocks(named, block_size, limit)
    items = [(block.part, item) for block in blocks for item in range(block.start, block.stop)]
    everything = [(name, item) for name, ends in named for item in range(ends[-1] if ends else 0)]
    assert items == everything[:limit]
    assert all(0 < block.stop - block.start <= block_size for block in blocks)


def test_blocks_prefer_to_end_at_boundaries():
    assert cut_blocks([("p", [100, 200, 300])], 250, None) == [SourceBlock("p", 0, 200), SourceBlock("p", 200, 300)]
    assert cut_blocks([("p", [300])], 250, None) == [SourceBlock("p", 0, 250), SourceBlock("p", 250, 300)]


def test_repeated_keys_are_found_within_a_part_and_refused_between_parts():
    assert repeated_keys([("a", key_digests("xyxzx")), ("b", key_digests("uvw"))], "") == {"a": frozenset({2, 4})}
    with pytest.raises(SourceError, match=r"item 1 of a and item 2 of b have the same key.*: rename"):
        repeated_keys([("a", key_digests("xy")), ("b", key_digests("uvy"))], "rename")
    assert repeated_keys([], "") == {}


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=1200), st.data())
def test_packed_names_are_the_names(names, data):
    packed = pickle.loads(pickle.dumps(PackedNames(names)))
    start = data.draw(st.integers(0, len(names)))
    stop = data.draw(st.integers(start, len(names) + 3))
    assert len(packed) == len(names) and list(packed) == names
    assert list(packed.between(start, stop)) == names[start:stop]


def test_sorted_paths_take_little_room():
    names = [f"class_{number // 1000:04d}/image_{number:08d}.jpg" for number in range(100_000)]
    assert len(pickle.dumps(PackedNames(names))) < 6 * len(names)


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("a.jpg", "a", "jpg"),
        ("v1.2/a.seg.PNG", "v1.2/a", "seg.png"),
        ("a/b", "a/b", ""),
        ("a/.hidden", "a/", "hidden"),
    ],
)
def test_keys_are_split_as_webdataset_does(name, key, extension):
    assert split_key(name) == (key, extension)


@pytest.mark.parametrize(
    ("value", "text"),
    [("  a ", "a"), (None, ""), (float("nan"), ""), (True, ""), (3, "3"), (0.5, "0.5"), (["a"], ""), ("\ud83d", "?")],
)
def test_metadata_values_become_text(value, text):
    assert clean_text(value) == text
