"""What the first worker tells of a run: console lines, journal, trackers. The others stay silent.

Letters in names: F figures of a step.
"""

import io
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from remembrandt.progress import format_seconds, say
from remembrandt.storage import Store
from remembrandt.training.config import LoopConfig
from remembrandt.training.journal import Journal
from remembrandt.training.trackers import Tracker, open_trackers

_EVENTS = "tensorboard"


class Console:
    """Tells of a run from step `step` on.

    Attributes:
        utilisation: model FLOP utilisation at one example a second; None where the hardware's peak is not known.
    """

    def __init__(self, name: str, loop: LoopConfig, store: Store, settings: Mapping[str, Any], step: int) -> None:
        self._name, self._loop, self._store = name, loop, store
        self.utilisation: float | None = None
        self._journal = Journal(store, step)
        local = store.local_path(_EVENTS)
        self._events = local or Path(tempfile.mkdtemp(prefix="remembrandt-events-"))
        self._copied = local is None
        self._trackers: list[Tracker] = open_trackers(loop.trackers, name, self._events, settings)
        self._first, self._started, self._said = step, time.monotonic(), time.monotonic()
        self._waits: list[tuple[float, float]] = []
        self._marked = (step, time.monotonic())

    def waited(self, data_seconds: float, retrieval_seconds: float) -> None:
        """How long the last step waited for its batch."""
        self._waits.append((data_seconds, retrieval_seconds))

    def write(self, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Figures of the steps since the last call, in order."""
        if not rows:
            return
        now = time.monotonic()
        last_step, marked = self._marked
        done = rows[-1][0] + 1
        rate = (done - last_step) * self._loop.batch_size / max(now - marked, 1e-9)
        self._marked = (done, now)
        for (step, figures), (data, retrieval) in zip(rows, self._waits, strict=True):
            self._journal.append(step, figures)
            told = {**figures, "data_wait_seconds": data, "retrieval_wait_seconds": retrieval}
            for tracker in self._trackers:
                tracker.figures(step, told)
        speed = {"images_per_second": rate}
        if self.utilisation is not None:
            speed["model_flop_utilisation"] = rate * self.utilisation
        for tracker in self._trackers:
            tracker.figures(rows[-1][0], speed)
        self._say(done, rows, rate)
        self._waits.clear()

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Keeps a picture in the run's folder, and tells the trackers."""
        data = io.BytesIO()
        image.save(data, format="PNG")
        self._store.write(f"{name}/step-{step:09d}.png", data.getvalue())
        for tracker in self._trackers:
            tracker.picture(step, name, image)

    def close_chunk(self) -> None:
        """A checkpoint is about to be taken: what it stands behind is written."""
        self._journal.close_chunk()
        if self._copied:
            for file in self._events.rglob("*"):
                if file.is_file():
                    self._store.upload(file, f"{_EVENTS}/{file.relative_to(self._events)}")

    def close(self) -> None:
        """Ends the trackers."""
        for tracker in self._trackers:
            tracker.close()
        if self._copied:
            shutil.rmtree(self._events, ignore_errors=True)

    def _say(self, done: int, rows: Sequence[tuple[int, dict[str, float]]], rate: float) -> None:
        loop = self._loop
        mean = sum(figures["loss"] for _, figures in rows) / len(rows)
        waits = sum(retrieval for _, retrieval in self._waits) / max(len(self._waits), 1)
        pace = (time.monotonic() - self._started) / max(done - self._first, 1)
        left = format_seconds(pace * (loop.steps - done))
        share = "" if self.utilisation is None else f" ({rate * self.utilisation:.0%} of the peak FLOP/s)"
        say(
            f"{self._name}: step {done:,}/{loop.steps:,}, loss {mean:.4f}, {rate:,.1f} images/s{share}, "
            f"retrieval wait {waits * 1000:.1f} ms, {left} left"
        )
