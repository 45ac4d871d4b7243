"""A folder of images as a source."""

import json
import os
import pickle
from pathlib import Path

import pytest

from remembrandt.data.sources import open_source
from remembrandt.data.sources.images import ImagesConfig
from remembrandt.errors import SourceError
from remembrandt.storage.store import open_store


@pytest.fixture
def folder(tmp_path, put, picture):
    metadata = {"caption": "unused", "captions": ["a dog", "hound"], "group": "dogs", "licence": "MIT", "style": "oil"}
    return put(
        tmp_path / "pictures",
        {
            "b/dog.jpg": picture(1),
            "b/dog.txt": "\ufeffa dog in oil\n".encode(),
            "b/dog.json": json.dumps(metadata).encode(),
            "a/cat.PNG": picture(2, "PNG"),
            "a/cat.json": b'{"caption": "a cat", "license": "CC0-1.0"}',
            "plain.webp": picture(3, "WEBP"),
            "notes.md": b"ignored",
            "orphan.txt": b"ignored",
            ".hidden/x.jpg": b"ignored",
            "__MACOSX/b/dog.jpg": b"ignored",
        },
    )


def test_images_come_sorted_by_path_with_what_lies_beside_them(folder, read_all, picture):
    cat, dog, plain = read_all(open_source(ImagesConfig(uri=folder)))
    assert [cat.key, dog.key, plain.key] == ["a/cat.PNG", "b/dog.jpg", "plain.webp"]
    assert dog.image == picture(1)
    assert (dog.caption, dog.captions, dog.group, dog.licence) == ("a dog in oil", ("a dog", "hound"), "dogs", "MIT")
    assert (cat.caption, cat.licence) == ("a cat", "CC0-1.0")
    assert (plain.caption, plain.captions, plain.group, plain.licence) == ("", (), "", "")
    assert dog.fields == {"style": "oil"} and plain.fields == {"style": ""}


def test_fields_are_what_the_configuration_names(folder, read_all):
    source = open_source(ImagesConfig(uri=folder, fields=("group", "zebra")))
    assert source.field_names == ("group", "zebra")
    assert [record.fields for record in read_all(source)][1] == {"group": "dogs", "zebra": ""}


def test_any_block_size_gives_the_same_items(folder, read_all, keys):
    source = open_source(ImagesConfig(uri=folder))
    assert [len(source.blocks(size)) for size in (1, 2, 100)] == [3, 2, 1]
    assert keys(read_all(source, 1)) == keys(read_all(source, 2)) == keys(read_all(source, 100))


def test_a_pickled_source_reads_the_same(folder, read_all):
    source = open_source(ImagesConfig(uri=folder))
    assert read_all(pickle.loads(pickle.dumps(source))) == read_all(source)


def test_order_does_not_depend_on_the_order_of_writing(tmp_path, put, picture, read_all, keys):
    names = [f"{number}.jpg" for number in range(600)]
    forward = put(tmp_path / "forward", {name: picture(0) for name in names})
    backward = put(tmp_path / "backward", {name: picture(0) for name in reversed(names)})
    first = keys(read_all(open_source(ImagesConfig(uri=forward)), 7))
    assert first == sorted(names) == keys(read_all(open_source(ImagesConfig(uri=backward)), 7))


def test_extensions_and_include_choose_the_images(folder, read_all, keys):
    assert keys(read_all(open_source(ImagesConfig(uri=folder, extensions=("webp",))))) == ["plain.webp"]
    assert keys(read_all(open_source(ImagesConfig(uri=folder, include=("b/*",))))) == ["b/dog.jpg"]


def test_one_file_can_be_a_source(folder, read_all, keys):
    assert keys(read_all(open_source(ImagesConfig(uri=f"{folder}/a/cat.PNG")))) == ["cat.PNG"]


def test_limit_takes_the_first_items(folder, read_all, keys):
    assert keys(read_all(open_source(ImagesConfig(uri=folder, limit=2)), 1)) == ["a/cat.PNG", "b/dog.jpg"]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ({"keys": ["a/cat.PNG"]}, ["b/dog.jpg", "plain.webp"]),
        ({"groups": ["dogs"]}, ["a/cat.PNG", "plain.webp"]),
        ({"groups": ["plain.webp"]}, ["a/cat.PNG", "b/dog.jpg"]),
        ({"licences": ["MIT", ""]}, ["a/cat.PNG"]),
    ],
)
def test_excluded_items_are_left_out(folder, read_all, keys, exclude, left):
    assert keys(read_all(open_source(ImagesConfig(uri=folder, exclude=exclude)))) == left


def test_exclusions_can_stand_in_a_file(folder, tmp_path, read_all, keys):
    listed = tmp_path / "excluded.txt"
    listed.write_text("# withdrawn\nplain.webp\n\nlicence: MIT\n")
    source = open_source(ImagesConfig(uri=folder, exclude={"file": str(listed)}))
    assert keys(read_all(source)) == ["a/cat.PNG"]
    before = source.fingerprint()
    listed.write_text("plain.webp\n")
    assert open_source(ImagesConfig(uri=folder, exclude={"file": str(listed)})).fingerprint() != before


def test_a_source_can_state_the_licence_of_items_that_state_none(folder, read_all):
    records = read_all(open_source(ImagesConfig(uri=folder, licence="CC-BY-4.0")))
    assert [record.licence for record in records] == ["CC0-1.0", "MIT", "CC-BY-4.0"]


def test_broken_metadata_is_a_problem_of_that_item_alone(folder, put, read_all):
    put(folder, {"b/dog.json": b"{", "a/cat.json": b"[]"})
    records = read_all(open_source(ImagesConfig(uri=folder)))
    problems = [record.problem for record in records]
    assert problems == ["its metadata is not a JSON object", "its metadata is not valid JSON", None]


def test_a_file_that_vanishes_after_listing_is_a_problem(folder, read_all):
    source = open_source(ImagesConfig(uri=folder))
    os.unlink(f"{folder}/b/dog.jpg")
    assert [bool(record.problem) for record in read_all(source)] == [False, True, False]
    assert "does not exist" in read_all(source)[1].problem


def test_a_link_that_leads_nowhere_is_passed_over(folder, read_all, keys):
    Path(folder, "b", "gone.jpg").symlink_to("nowhere.jpg")
    assert keys(read_all(open_source(ImagesConfig(uri=folder)))) == ["a/cat.PNG", "b/dog.jpg", "plain.webp"]


def test_text_that_no_store_accepts_is_mended(folder, put, read_all):
    put(folder, {"a/cat.json": b'{"caption": "half \\ud83d a pair"}'})
    assert read_all(open_source(ImagesConfig(uri=folder)))[0].caption == "half ? a pair"


def test_the_fingerprint_follows_content_and_captions(folder, put):
    before = open_source(ImagesConfig(uri=folder)).fingerprint()
    assert open_source(ImagesConfig(uri=folder)).fingerprint() == before
    put(folder, {"b/dog.txt": b"another caption"})
    assert open_source(ImagesConfig(uri=folder)).fingerprint() != before


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(SourceError, match="nowhere does not exist: check its uri"):
        open_source(ImagesConfig(uri=str(tmp_path / "nowhere")))


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(SourceError, match="is empty"):
        open_source(ImagesConfig(uri=str(tmp_path)))


def test_a_folder_of_other_files_says_what_was_looked_for(tmp_path, put):
    uri = put(tmp_path, {"00000.tar": b"", "a.txt": b""})
    with pytest.raises(SourceError, match=r"holds 2 files but none ending in \.jpg.*check uri, kind and include"):
        open_source(ImagesConfig(uri=uri))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_named(folder):
    os.chmod(f"{folder}/b", 0)
    try:
        with pytest.raises(SourceError, match="permission denied"):
            open_source(ImagesConfig(uri=folder))
    finally:
        os.chmod(f"{folder}/b", 0o755)


def test_a_folder_that_cannot_be_listed_is_named_with_the_cause(folder):
    with pytest.raises(SourceError, match=r"cannot read source .*notes\.md/x: .*a part of the path is a file"):
        open_source(ImagesConfig(uri=f"{folder}/notes.md/x"))


@pytest.mark.s3
def test_a_bucket_that_does_not_exist_is_named(s3_uri):
    with pytest.raises(SourceError, match="bucket 'absent-bucket' does not exist"):
        open_source(ImagesConfig(uri="s3://absent-bucket/x"))


@pytest.mark.s3
def test_wrong_credentials_are_named(s3_uri, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(SourceError, match="the server refuses these credentials"):
        open_source(ImagesConfig(uri=s3_uri))


def test_an_exclude_file_that_is_missing_is_named(folder):
    with pytest.raises(SourceError, match=r"exclude\.file: .*no\.txt.*does not exist"):
        open_source(ImagesConfig(uri=folder, exclude={"file": "/no/no.txt"}))


@pytest.mark.s3
def test_images_on_s3_read_like_local_ones(folder, s3_uri, put, read_all):
    local = read_all(open_source(ImagesConfig(uri=folder)))
    root = Path(folder)
    put(s3_uri, {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()})
    source = open_source(ImagesConfig(uri=s3_uri))
    assert read_all(pickle.loads(pickle.dumps(source)), 2) == local
    assert source.fingerprint() == open_source(ImagesConfig(uri=s3_uri)).fingerprint()


@pytest.mark.s3
def test_an_object_that_vanishes_after_listing_is_a_problem(s3_uri, put, picture, read_all):
    put(s3_uri, {"1.jpg": picture(1), "2.jpg": picture(2)})
    source = open_source(ImagesConfig(uri=s3_uri))
    open_store(s3_uri).delete("1.jpg")
    assert [bool(record.problem) for record in read_all(source)] == [True, False]
