"""The GPU check itself, on small networks and the CPU: what runs unattended on a GPU must not have rotted since."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.benchmarks.gpu_check import run_part

CONFIGS = Path(__file__).parents[1] / "jobs" / "configs"
BRIEFLY = """
from tests.benchmarks import gpu_check
gpu_check.STEPS, gpu_check.WARM_UP, gpu_check.SAMPLING_STEPS, gpu_check.ROUNDS = 2, 1, 2, 1
gpu_check.main()
"""
"""Many CPUs take a second for what a GPU does in a millisecond with bf16."""
RDM = {
    "latent_size": 8,
    "latent_channels": 4,
    "channels": 32,
    "multipliers": [1, 2],
    "layers": 1,
    "attention_at": [4],
    "context_dim": 16,
}


OVER = "TimeoutError: the time for all parts is over (--minutes)"
PARTS = ["Training rdm", "Sampling rdm", "Training base, 16 pixels", "Sampling base, 16 pixels", "FAISS"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_runs_that_needs_no_gpu(tmp_path: Path) -> None:
    parts = run(tmp_path)
    assert list(parts) == PARTS
    assert [name for name, body in parts.items() if "Not run" in body] == ["FAISS"]
    rows = {name: len(body.splitlines()) - 2 for name, body in parts.items() if name != "FAISS"}
    assert rows == {"Training rdm": 4, "Sampling rdm": 2, "Training base, 16 pixels": 1, "Sampling base, 16 pixels": 1}
    rates = [float(rate) for body in parts.values() for rate in re.findall(r"\| \d+ \| ([\d.]+) \|", body)]
    assert rates and all(rate > 0 for rate in rates)


@pytest.mark.timeout(120)
def test_a_part_without_time_is_named(tmp_path: Path) -> None:
    parts = run(tmp_path, "--minutes", "0")
    assert parts == dict.fromkeys(PARTS, f"Not run: {OVER}")


@pytest.mark.timeout(60)
def test_a_part_ends_with_its_time_and_keeps_what_it_measured() -> None:
    def endless() -> Iterator[dict[str, str]]:
        yield {"rate": "3"}
        while True:
            time.sleep(0.01)

    def deaf() -> Iterator[dict[str, str]]:
        with suppress(Exception):
            yield from endless()
        yield from endless()

    assert run_part(endless, time.monotonic() + 0.2).splitlines()[2:] == ["| 3 |", "", f"Stopped here: {OVER}"]
    assert run_part(deaf, time.monotonic() + 0.2).splitlines()[2:] == ["| 3 |", "| 3 |", "", f"Stopped here: {OVER}"]


def run(folder: Path, *arguments: str) -> dict[str, str]:
    """What each part of the check on the CPU printed."""
    stages = yaml.safe_load((CONFIGS / "train_reimagen" / "tiny.yaml").read_text())["stages"]
    base = {**stages[32]["model"], "size": 16, "text_dim": 32}
    (folder / "rdm.yaml").write_text(yaml.safe_dump({"model": RDM}))
    (folder / "base.yaml").write_text(yaml.safe_dump({"stages": {16: {"model": base}}}))
    files = ["--rdm", str(folder / "rdm.yaml"), "--reimagen", str(folder / "base.yaml")]
    command = [sys.executable, "-c", BRIEFLY, "--device", "cpu", "--batch", "2", *files, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return dict(re.findall(r"^## (.+?)\n\n(.*?)\n\n\d+ s\.$", ended.stdout, re.MULTILINE | re.DOTALL))


def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.gpu_check"]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin", "CUDA_VISIBLE_DEVICES": ""}
    )
    assert ended.stdout.strip() == "no CUDA GPU here: nothing to check"
