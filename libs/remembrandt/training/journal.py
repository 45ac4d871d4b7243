"""Every step's figures at full precision, so that two runs can be compared to the last digit.

Lines lie in chunks that end where checkpoints do: a run that goes on from a checkpoint drops the chunks behind it, so
that every step is there exactly once.
"""

import json
from typing import Any

from remembrandt.storage import Store, open_store

_FOLDER = "metrics"


class Journal:
    """Writes the figures of one run; used by one worker.

    Args:
        store: of the run.
        step: the first step that is going to be written; what lies behind it is dropped.
    """

    def __init__(self, store: Store, step: int) -> None:
        self._store = store.child(_FOLDER)
        self._lines: list[str] = []
        self._start = step
        for entry in self._store.files():
            if int(entry.path.split("-")[0]) >= step:
                self._store.delete(entry.path)

    def append(self, step: int, figures: dict[str, float]) -> None:
        """Adds the figures of a step; steps come in order."""
        assert step == self._start + len(self._lines), "a step is missing or comes twice"
        self._lines.append(json.dumps({"step": step, **figures}))

    def close_chunk(self) -> None:
        """Writes what was added since the last chunk."""
        if not self._lines:
            return
        stop = self._start + len(self._lines)
        self._store.write(f"{self._start:09d}-{stop:09d}.jsonl", ("\n".join(self._lines) + "\n").encode())
        self._start, self._lines = stop, []


def read_journal(run: str | Store) -> list[dict[str, Any]]:
    """The figures of every step of a run, in order."""
    store = (open_store(run) if isinstance(run, str) else run).child(_FOLDER)
    lines = [line for entry in store.files() for line in store.read(entry.path).decode().splitlines()]
    return [json.loads(line) for line in lines]
