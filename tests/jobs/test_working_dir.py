"""What the README's commands leave in a checkout: no job carries it to the cluster, and nobody commits it."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LEFT = re.compile(r'\b(?:storage|cache|output|out)="\$PWD/([^/"]+)')


@pytest.mark.parametrize("ignore", [".rayignore", ".gitignore"])
def test_what_jobs_write_into_a_checkout_stays_there(ignore: str, tmp_path: Path) -> None:
    """Ray refuses a working directory of more than 100 MB; both files have git's syntax."""
    left = {f"{folder}/some/file" for folder in _LEFT.findall((ROOT / "README.md").read_text())}
    kept = {"jobs/train_rdm.py", "jobs/configs/train_rdm/small.yaml", "services/app.py"}
    (tmp_path / ".gitignore").write_text((ROOT / ignore).read_text())
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    command = ["git", "-C", str(tmp_path), "check-ignore", *sorted(left | kept)]
    ignored = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert len(left) >= 2
    assert set(ignored) == left
