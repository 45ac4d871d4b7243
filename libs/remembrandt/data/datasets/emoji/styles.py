"""Who drew what: the styles, the packages that hold them, and their licences."""

from dataclasses import dataclass

# Found in every package's own metadata when it is opened: a changed licence stops the preparation.
APACHE, MIT, CC_BY, CC_BY_SA = "Apache-2.0", "MIT", "CC-BY-4.0", "CC-BY-SA-4.0"
EMOJIBASE = ("emojibase-data", "17.0.0")
EMOJILIB = ("emojilib", "4.0.3")
# The pistol is a firearm there and has since become a water pistol; 'cricket' is the game, not the insect, and
# 'up-button' the arrow, not the word UP!.
_OLD_NAMES = frozenset({"cricket", "pistol", "up-button"})
_FXEMOJI_MISNAMED = _OLD_NAMES | {
    *("bow", "compression", "couple", "down", "keyboard", "kiss"),
    *("pout", "pouting", "sunglasses", "up", "wave"),
}
# Lines without colours: all flags are the same rectangle, all hearts the same heart.
_COLOURED = r"^flag: |skin tone|\b(black|white|gr[ae]y|red|orange|yellow|green|blue|purple|pink|brown|blond)\b"


@dataclass(frozen=True)
class Style:
    """One artist's way of drawing.

    Attributes:
        layout: how the package holds its drawings: `iconify` (one JSON of SVG bodies) or `files` (one file a code).
        folder: of the files, below the package.
        phrase: the style in words; `{}` stands for the entity's label.
        misnamed: icons that show something else than their name says today (found by looking); they are left out.
        cannot_show: pattern of labels that this style draws like others, because it lacks what tells them apart.
        artist: as the package names it; drawings with an author of their own have theirs instead.
    """

    name: str
    package: str
    version: str
    layout: str
    licence: str
    artist: str
    phrase: str
    folder: str = ""
    misnamed: frozenset[str] = frozenset()
    cannot_show: str = ""

    @property
    def source(self) -> str:
        return f"npm:{self.package}@{self.version}"


STYLES = {
    style.name: style
    for style in (
        Style("noto", "@iconify-json/noto", "1.2.9", "iconify", APACHE, "Google Inc", "{}, a Noto emoji by Google"),
        Style("twemoji", "@iconify-json/twemoji", "1.2.5", "iconify", CC_BY, "Twitter", "{}, a flat Twemoji drawing"),
        Style(
            "fluent-flat",
            "@iconify-json/fluent-emoji-flat",
            "1.2.6",
            "iconify",
            MIT,
            "Microsoft Corporation",
            "{}, in flat Fluent style by Microsoft",
        ),
        Style(
            "fluent-3d",
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            "files",
            MIT,
            "Microsoft Corporation",
            "{}, a glossy 3D render in Fluent style by Microsoft",
            folder="assets",
        ),
        Style(
            "noto-v1",
            "@iconify-json/noto-v1",
            "1.2.5",
            "iconify",
            APACHE,
            "Google Inc",
            "{}, an old Noto emoji by Google",
            misnamed=_OLD_NAMES,
        ),
        Style(
            "fxemoji",
            "@iconify-json/fxemoji",
            "1.2.2",
            "iconify",
            APACHE,
            "Mozilla",
            "{}, a Firefox OS emoji by Mozilla",
            misnamed=_FXEMOJI_MISNAMED,
        ),
        Style(
            "emojione",
            "@iconify-json/emojione",
            "1.2.3",
            "iconify",
            CC_BY,
            "Emoji One",
            "{}, an Emoji One drawing",
            misnamed=_OLD_NAMES,
        ),
        Style(
            "openmoji",
            "openmoji",
            "17.0.0",
            "files",
            CC_BY_SA,
            "OpenMoji",
            "{}, an OpenMoji drawing with black outlines and plain colours",
            folder="color/svg",
        ),
        Style(
            "openmoji-black",
            "openmoji",
            "17.0.0",
            "files",
            CC_BY_SA,
            "OpenMoji",
            "{}, a black line drawing by OpenMoji",
            folder="black/svg",
            cannot_show=_COLOURED,
        ),
    )
}
