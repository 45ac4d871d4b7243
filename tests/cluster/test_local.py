"""`cluster/local.sh`: a Ray head that takes jobs, and an end that takes only its own processes along."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "cluster" / "local.sh"


def local(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the script with its own state, and without what the test session sets for Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**kept, "RAY_STATE_DIR": str(state), "RAY_CPUS": "1", "RAY_OBJECT_STORE_BYTES": "100000000"}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=240)


def client_environment(state: Path) -> dict[str, str]:
    """What `eval "$(cluster/local.sh env)"` gives a shell."""
    words = shlex.split(local(state, "env").stdout)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | dict(word.split("=", 1) for word in words if "=" in word)


def processes_of(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("REMEMBRANDT_LOCAL_CLUSTER") == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def state(tmp_path: Path):
    folder = tmp_path / "a state folder"
    yield folder
    local(folder, "down")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_takes_jobs_and_leaves_nothing_and_nobody_else_behind(state: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "raylet"]) as bystander:
        try:
            up = local(state, "up")
            assert up.returncode == 0, up.stderr
            address, mark = up.stdout.strip(), (state / "mark").read_text().strip()
            temporary = Path((state / "temporary").read_text().strip())
            assert local(state, "up").stdout.strip() == address, "a second `up` finds the first"
            assert address in local(state, "status").stdout

            program = "import ray; ray.init(); print('cpus', int(ray.cluster_resources()['CPU']))"
            command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--", "python", "-c", program]
            job = subprocess.run(command, env=client_environment(state), capture_output=True, text=True, timeout=180)
            assert "cpus 1" in job.stdout, job.stdout + job.stderr

            assert local(state, "down").returncode == 0
            assert processes_of(mark) == []
            assert not temporary.exists()
            assert bystander.poll() is None
        finally:
            bystander.kill()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whoever_has_no_token_is_refused(state: Path) -> None:
    assert local(state, "up").returncode == 0
    environment = client_environment(state)
    environment["RAY_AUTH_MODE"] = "disabled"
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--", "true"]
    job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert job.returncode != 0
    assert "submitted successfully" not in job.stdout
    assert (state / "auth_token").stat().st_mode & 0o077 == 0


def test_without_a_cluster_status_and_env_say_so(state: Path) -> None:
    assert local(state, "status").returncode == 1
    env = local(state, "env")
    assert env.returncode == 2
    assert env.stderr == "error: no local cluster runs: start it with cluster/local.sh up\n"
    assert local(state, "down").returncode == 0
