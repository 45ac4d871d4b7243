"""Splits that depend on the name of an entity alone: the same on every machine, whatever else is in the data set."""

import hashlib

HELD_OUT_SHARE = 0.1


def split_of(base: str, salt: str) -> str:
    """`held-out` for a tenth of all base entities, else `train`."""
    return "held-out" if stable_fraction(f"{salt}:{base}") < HELD_OUT_SHARE else "train"


def stable_fraction(text: str) -> float:
    """A number in [0, 1) from the SHA-256 of `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
