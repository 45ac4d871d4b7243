"""What every benchmark report says first, and how figures become a Markdown file."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

FOLDER = Path(__file__).parent


def hardware() -> str:
    """Processor, cores this process may use, and memory."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def versions(*packages: str) -> str:
    """`name version` of installed packages, and Python's."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table; the first row's keys are the columns."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def write_report(name: str, title: str, command: str, packages: Sequence[str], sections: Sequence[str]) -> Path:
    """Writes `tests/benchmarks/<name>.md`: title, when and where it was measured, and the sections."""
    head = [
        f"# {title}",
        f"Measured {time.strftime('%Y-%m-%d')} on {hardware()}; {versions(*packages)}. Load at the end: "
        f"{os.getloadavg()[0]:.1f}.",
        f"Run it again: `{command}`.",
    ]
    path = FOLDER / f"{name}.md"
    path.write_text("\n\n".join([*head, *sections]) + "\n", encoding="utf-8")
    return path


def median_seconds(work: Callable[[], object], runs: int = 5, warmups: int = 1) -> tuple[float, list[float]]:
    """Median and all times of `work`, after warm-ups that do not count."""
    for _ in range(warmups):
        work()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), times
