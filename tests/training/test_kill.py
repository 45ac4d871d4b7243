"""A training run that is killed again and again has the losses of one that was left alone."""

import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from remembrandt.training.journal import read_journal
from tests.support.builds import TrainCascadeProcess, TrainProcess

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.slow]

STEPS = 24
TARGETS = ("trainer", "actor", "driver")
Kill = tuple[str, Path, int]
"""What is killed, and when: the folder of a run, and how many of its steps must be on disk."""


def closely_kept(loop: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A loop that writes down every step and keeps every second one."""
    return {**loop, "steps": STEPS, "checkpoint_every": 2, "log_every": 1, **changes}


def wait_for_step(process: TrainProcess, run: Path, step: int, timeout: float = 200) -> bool:
    """Until the journal holds that step: checkpoints follow at once. False if the job ended before."""
    deadline = time.monotonic() + timeout
    while max((int(file.stem.split("-")[1]) for file in (run / "metrics").glob("*.jsonl")), default=0) < step:
        if not process.running:
            return False
        assert time.monotonic() < deadline, process.tail()
        time.sleep(0.1)
    return True


def run_with_kills(
    job: type[TrainProcess], values: dict[str, Any], scratch: Path, kills: Iterable[Kill], rng: random.Random
) -> list[str]:
    """Runs a job to its end; whose driver is killed, is started again. Returns what was killed."""
    done: list[str] = []
    process = job(values, scratch)
    try:
        for target, run, step in kills:
            if not wait_for_step(process, run, step):
                break
            if target == "trainer":
                killed = process.kill_trainer()
            elif target == "actor":
                killed = process.kill_actor(rng)
            else:
                killed = True
                process.kill_driver()
                process.end()
                process = job(values, scratch)
            done += [f"{target} at {step} of {run.name}"] if killed else []
        assert process.wait() == 0, process.tail()
    finally:
        process.end()
    return done


def moments(rng: random.Random, count: int) -> list[int]:
    """Steps at which something is killed."""
    return sorted(rng.sample(range(2, STEPS - 2), count))


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("stage", "workers", "kills"),
    [
        (1, 1, 3),
        (1, 2, 4),
        (2, 2, 4),
    ],
)
def test_a_killed_run_has_the_losses_of_an_undisturbed_one(
    stage: int, workers: int, kills: int, run_values: dict[str, Any], tmp_path: Path
) -> None:
    loop = closely_kept(run_values["loop"], zero_stage=stage, workers=workers)
    values = {**run_values, "name": f"zero-{stage}", "loop": loop}
    quiet = {**values, "storage": str(tmp_path / "quiet"), "output": str(tmp_path / "quiet-model")}
    assert run_with_kills(TrainProcess, quiet, tmp_path, (), random.Random()) == []
    expected = read_journal(f"{quiet['storage']}/{quiet['name']}")
    assert [line["step"] for line in expected] == list(range(STEPS))

    rng, run = random.Random(stage), Path(values["storage"]) / values["name"]
    planned = [(TARGETS[(n + stage) % 3], run, step) for n, step in enumerate(moments(rng, kills))]
    done = run_with_kills(TrainProcess, values, tmp_path, planned, rng)
    assert len(done) >= kills - 1, done
    # Every figure of every step, to the last digit; none repeated, none skipped.
    assert read_journal(str(run)) == expected, done


@pytest.mark.timeout(1500)
def test_so_has_every_stage_of_a_cascade(cascade_values: dict[str, Any], tmp_path: Path) -> None:
    values = dict(cascade_values)
    values["stages"] = {
        size: {**own, "loop": closely_kept(own["loop"], sample_every=0)} for size, own in values["stages"].items()
    }
    names = [f"{values['name']}-{size}" for size in values["stages"]]
    quiet = {**values, "storage": str(tmp_path / "quiet"), "output": str(tmp_path / "quiet-model")}
    assert run_with_kills(TrainCascadeProcess, quiet, tmp_path, (), random.Random()) == []
    expected = {name: read_journal(f"{quiet['storage']}/{name}") for name in names}
    assert all([line["step"] for line in lines] == list(range(STEPS)) for lines in expected.values())

    rng, runs = random.Random(7), Path(values["storage"])
    planned = [
        (target, runs / name, step) for name in names for target, step in zip(TARGETS, moments(rng, 3), strict=True)
    ]
    done = run_with_kills(TrainCascadeProcess, values, tmp_path, planned, rng)
    assert len(done) >= 5, done
    for name in names:
        assert read_journal(str(runs / name)) == expected[name], done
