"""A training run that is killed again and again has the losses of one that was left alone."""

import random
import time
from pathlib import Path
from typing import Any

import pytest

from remembrandt.training.journal import read_journal
from tests.support.builds import TrainProcess

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.slow]

STEPS = 24
TARGETS = ("trainer", "actor", "driver")


def run_values_for(values: dict[str, Any], stage: int, workers: int) -> dict[str, Any]:
    loop = {**values["loop"], "steps": STEPS, "zero_stage": stage, "workers": workers}
    loop |= {"checkpoint_every": 2, "log_every": 1}
    return {**values, "name": f"zero-{stage}", "loop": loop}


def checkpointed(values: dict[str, Any]) -> int:
    """Steps that the journal holds: checkpoints follow at once."""
    folder = Path(values["storage"]) / values["name"] / "metrics"
    return max((int(file.stem.split("-")[1]) for file in folder.glob("*.jsonl")), default=0)


def wait_for_step(process: TrainProcess, values: dict[str, Any], step: int, timeout: float = 200) -> bool:
    """False if the run ended before."""
    deadline = time.monotonic() + timeout
    while checkpointed(values) < step:
        if not process.running:
            return False
        assert time.monotonic() < deadline, process.tail()
        time.sleep(0.1)
    return True


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
    quiet = run_values_for(run_values, stage, workers)
    quiet = {**quiet, "storage": str(tmp_path / "quiet"), "output": str(tmp_path / "quiet-model")}
    undisturbed = TrainProcess(quiet, tmp_path)
    assert undisturbed.wait() == 0, undisturbed.tail()
    expected = read_journal(f"{quiet['storage']}/{quiet['name']}")
    assert [line["step"] for line in expected] == list(range(STEPS))

    values = run_values_for(run_values, stage, workers)
    rng = random.Random(stage)
    done: list[str] = []
    process = TrainProcess(values, tmp_path)
    try:
        for number, moment in enumerate(sorted(rng.sample(range(2, STEPS - 2), kills))):
            if not wait_for_step(process, values, moment):
                break
            target = TARGETS[(number + stage) % len(TARGETS)]
            if target == "trainer":
                killed = process.kill_trainer()
            elif target == "actor":
                killed = process.kill_actor(rng)
            else:
                killed = True
                process.kill_driver()
                process.end()
                process = TrainProcess(values, tmp_path)
            done += [f"{target} at {moment}"] if killed else []
        assert process.wait() == 0, process.tail()
    finally:
        process.end()
    assert len(done) >= kills - 1, done
    found = read_journal(f"{values['storage']}/{values['name']}")
    # Every figure of every step, to the last digit; none repeated, none skipped.
    assert found == expected, done
