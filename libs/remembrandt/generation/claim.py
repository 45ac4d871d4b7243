"""Whose an output folder is: what it was begun for, so that nothing of another run is mixed with it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from remembrandt.errors import ConfigError
from remembrandt.storage import Store


@dataclass(frozen=True)
class Claim:
    """What is in a folder depends on this alone.

    Attributes:
        asked: digest of everything that was asked for.
        versions: URI of a database → the version that was live when the run was begun.
        block_size: how the work was cut.
    """

    asked: str
    versions: Mapping[str, str]
    block_size: int = 0

    @classmethod
    def read(cls, store: Store, path: str) -> Self | None:
        """What `write` wrote; None if there is none."""
        if not store.exists(path):
            return None
        return cls(**json.loads(store.read(path)))

    def write(self, store: Store, path: str) -> None:
        """Takes the folder."""
        store.write(path, json.dumps(asdict(self), indent=1).encode())

    def check(self, kept: "Claim | None", uri: str, what: str) -> None:
        """Raises ConfigError unless the folder at `uri`, in which `what` lies, was taken by this claim."""
        if kept is None or kept.asked != self.asked:
            raise ConfigError(f"{uri} holds {what}: name another folder, or remove it")
        if kept.block_size != self.block_size:
            raise ConfigError(f"{uri} was begun with block_size {kept.block_size}: keep it, or name another folder")
