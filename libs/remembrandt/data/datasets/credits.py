"""Who made a picture and under which licence, from the README files of GCompris."""

import re
from dataclasses import dataclass

PUBLIC_DOMAIN = "LicenseRef-Public-Domain"
_FIELDS = ("Copyright", "License", "Source", "Files", "Comment")
_FILE = re.compile(r"\S+\.(webp|svg|png|jpe?g|ogg)")


@dataclass(frozen=True)
class Credit:
    """Artist and SPDX licence identifier."""

    artist: str
    licence: str


def read_credits(readme: str) -> dict[str, Credit]:
    """Credit by file name. A README is a list of paragraphs with the fields Copyright, License and Files (some forget
    the last one and just list the files).
    """
    credits = {}
    for paragraph in re.split(r"\n\s*\n", readme):
        fields = _fields(paragraph)
        files = fields.get("Files", [])
        if not files or not fields.get("License"):
            continue
        credit = Credit(_artist(fields), spdx(" ".join(fields["License"])))
        credits.update(dict.fromkeys(files, credit))
    return credits


def spdx(text: str) -> str:
    """`CC-BY-SA 4.0` → `CC-BY-SA-4.0`; `GPLv3 or later` → `GPL-3.0-or-later`."""
    plain = text.strip().replace(" ", "-")
    if re.match("public-domain", plain, re.IGNORECASE):
        return PUBLIC_DOMAIN
    if gpl := re.match(r"GPL-?v?(\d)(?:\.0)?(.*)", plain, re.IGNORECASE):
        later = "later" in gpl[2] or "+" in gpl[2]
        return f"GPL-{gpl[1]}.0-{'or-later' if later else 'only'}"
    if creative := re.match(r"(CC-BY(?:-SA)?)-?v?(\d)(?:\.\d)?", plain, re.IGNORECASE):
        version = re.search(r"\d\.\d", plain)
        return f"{creative[1].upper()}-{version[0] if version else creative[2] + '.0'}"
    if re.match("CC-?0", plain, re.IGNORECASE):
        return "CC0-1.0"
    return f"LicenseRef-{re.sub('[^A-Za-z0-9.-]+', '-', plain)}"


def _fields(paragraph: str) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    current = ""
    for line in paragraph.splitlines():
        name, colon, rest = line.partition(":")
        if colon and name in _FIELDS:
            current, line = name, rest
        if line.strip():
            field = "Files" if _FILE.fullmatch(line.strip()) else current
            fields.setdefault(field, []).append(line.strip())
    return fields


def _artist(fields: dict[str, list[str]]) -> str:
    """Who is named by Copyright, without years, and whose work the picture is based on."""
    owner = re.sub(r"^(Copyright\s+)?(\d{4}(-\d{4})?,?\s*)*", "", " ".join(fields.get("Copyright", ["unknown"])))
    original = re.match(r"(based on .*?)(, (license|source|Public)|\.?$)", " ".join(fields.get("Comment", [])))
    return f"{owner}, {original[1]}" if original else owner
