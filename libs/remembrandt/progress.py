"""Progress of long work on stderr: done / total, rate and time left, as plain lines that survive a log file."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

_watchers: list[Callable[["Progress"], None]] = []


def watch(watcher: "Callable[[Progress], None]") -> None:
    """From now on, `watcher` is told whenever a `Progress` of this process prints a line."""
    _watchers.append(watcher)


class Progress:
    """Counts units of work and says at most once every `interval` seconds how it goes.

    stdout stays free for results (`--json`). Use as a context manager; the last line states the overall rate.
    """

    def __init__(self, what: str, total: int | None, unit: str = "rows", interval: float = 2.0, done: int = 0) -> None:
        self.what, self.total, self.unit, self.interval = what, total, unit, interval
        self._skipped = done
        self.done = done
        self._start = self._last = time.monotonic()

    def advance(self, units: int = 1) -> None:
        """Adds finished units, and prints a line if the interval has passed."""
        self.done += units
        now = time.monotonic()
        if now - self._last >= self.interval:
            self._last = now
            self._print(now)

    @property
    def rate(self) -> float:
        """Units a second since the start, without those that were already there."""
        return (self.done - self._skipped) / max(time.monotonic() - self._start, 1e-9)

    def _print(self, now: float, end: bool = False) -> None:
        count = f"{self.done:,}" + (f"/{self.total:,}" if self.total is not None else "")
        line = f"{self.what}: {count} {self.unit}, {self.rate:,.0f} {self.unit}/s"
        if end:
            line += f", {format_seconds(now - self._start)}"
        elif self.total is not None and self.rate > 0:
            line += f", {format_seconds((self.total - self.done) / self.rate)} left"
        print(line, file=sys.stderr, flush=True)
        for watcher in _watchers:
            watcher(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._print(time.monotonic(), end=True)


def say(message: str) -> None:
    """One line for the person who watches, on stderr."""
    print(message, file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """Seconds as `12 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def format_bytes(size: float) -> str:
    """Bytes with a decimal unit: `17.5 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
