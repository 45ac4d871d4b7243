"""Just enough of the Wesnoth Markup Language to read units: nested tags with attributes, macros left alone."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""
    \[ (?P<close>/?) \+? (?P<tag>[a-z_]+) \]
    | (?P<key>\w+) [ \t]* = [ \t]* (?:_[ \t]*)? " (?P<text>(?:[^"]|"")*) "
    | (?P<bare_key>\w+) [ \t]* = [ \t]* (?P<bare>[^"\n\#]*)
    | \#[^\n]*
    | "(?:[^"]|"")*"
    """,
    re.VERBOSE,
)


@dataclass
class Tag:
    """One `[name]…[/name]`: its own attributes (the first value of each) and its whole source text."""

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    text: str = ""


def read_tags(source: str, name: str) -> Iterator[Tag]:
    """Every tag called `name`, at any depth; attributes of tags inside it are not its own."""
    found: Tag | None = None
    start, depth = 0, 0
    for token in _TOKEN.finditer(source):
        if token["tag"] and found is None:
            if token["tag"] == name and not token["close"]:
                found, start, depth = Tag(name), token.end(), 0
        elif token["tag"]:
            depth += -1 if token["close"] else 1
            if depth < 0 and found is not None:
                found.text = source[start : token.start()]
                yield found
                found = None
        elif found is not None and depth == 0:
            key, value = token["key"] or token["bare_key"], token["text"] if token["key"] else token["bare"]
            if key:
                found.attributes.setdefault(key, (value or "").replace('""', '"').strip())
