"""Builds as a person starts them, in processes of their own, so that any part can be killed."""

import io
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import yaml

from remembrandt.databases.catalog import Catalog
from remembrandt.databases.database import Database
from remembrandt.errors import RemembrandtError
from remembrandt.storage import ConflictError

REPOSITORY = Path(__file__).parents[2]
_MARK = "REMEMBRANDT_TEST_BUILD"


def run_job_here(name: str, *arguments: str) -> tuple[int, str, str]:
    """Runs `jobs/<name>.py` in this process, which has imported what takes seconds; exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", [f"jobs/{name}.py", *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            runpy.run_path(str(REPOSITORY / "jobs" / f"{name}.py"), run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


class JobProcess:
    """`python jobs/<name>.py` with a Ray instance of its own; all its processes carry a mark to find them by."""

    name: str
    cpus = 2

    def __init__(self, values: dict[str, Any], scratch: Path) -> None:
        self._mark = uuid.uuid4().hex
        config = scratch / f"{self.name}-{self._mark}.yaml"
        config.write_text(yaml.safe_dump(values))
        self.log = config.with_suffix(".log")
        self._tmp = tempfile.TemporaryDirectory(prefix="rmb", ignore_cleanup_errors=True)
        inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        own = {
            _MARK: self._mark,
            "RAY_TMPDIR": self._tmp.name,
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",
            "REMEMBRANDT_RAY_CPUS": str(self.cpus),
            "REMEMBRANDT_RAY_OBJECT_STORE_MB": "150",
        }
        with self.log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, f"jobs/{self.name}.py", "--config", str(config)],
                cwd=REPOSITORY,
                env={**inherited, **own},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout: float = 240) -> int:
        """Exit code."""
        code = self._process.wait(timeout)
        self.end()
        return code

    def kill_driver(self) -> None:
        """SIGKILL to the job's own process."""
        self._process.kill()
        self._process.wait()

    def kill_worker(self, rng: random.Random) -> bool:
        """SIGKILL to one Ray worker that is busy with the build; False if there is none."""
        busy = [p for p in self._processes() if _title(p).startswith("ray::") and "IDLE" not in _title(p)]
        if not busy:
            return False
        rng.choice(busy).kill()
        return True

    def kill_cluster(self) -> None:
        """SIGKILL to everything: driver, workers, raylet, GCS."""
        for process in self._processes():
            _kill(process)
        self._process.wait()

    def end(self) -> None:
        """Removes what is left of the processes and Ray's folder."""
        for process in self._processes():
            _kill(process)
        self._tmp.cleanup()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found


class BuildProcess(JobProcess):
    """A build."""

    name = "build_index"


class TrainProcess(JobProcess):
    """A training run of RDM: two workers and retrieval beside them fit."""

    name = "train_rdm"
    cpus = 3

    def kill_actor(self, rng: random.Random) -> bool:
        """SIGKILL to a retrieval actor; False if there is none."""
        actors = [p for p in self._processes() if _title(p).startswith("ray::DatabaseActor")]
        if actors:
            rng.choice(actors).kill()
        return bool(actors)

    def kill_trainer(self) -> bool:
        """SIGKILL to a training worker; False if there is none."""
        workers = [p for p in self._processes() if _title(p).startswith("ray::RayTrainWorker")]
        if workers:
            workers[0].kill()
        return bool(workers)


class TrainCascadeProcess(TrainProcess):
    """A training run of all stages of a Re-Imagen, one after the other."""

    name = "train_reimagen"


class Watcher:
    """Reads the database all the time while it is built and killed: whatever can be opened must be complete."""

    def __init__(self, uri: str, expected_rows: int) -> None:
        self._uri, self._rows = uri, expected_rows
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.looks = 0
        self.wrong: list[str] = []

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._thread.is_alive():
            self.wrong.append("an error that nobody foresaw ended the watch")
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        catalog = Catalog.open(self._uri)
        while not self._stop.is_set():
            for version in [*catalog.store.folders("versions"), None]:
                try:
                    with Database.open(self._uri, version=version) as database:
                        found = database.search_ids([database.num_rows - 1], 5)
                        if database.num_rows != self._rows or (found.ids < 0).any():
                            self.wrong.append(f"version {version} was readable with {database.num_rows} rows")
                except RemembrandtError as error:
                    if not any(text in str(error) for text in ("never finished", "no database is published")):
                        self.wrong.append(f"version {version}: {error}")
                self.looks += 1
            self._stop.wait(0.25)


def milestones(uri: str) -> list[str]:
    """What is committed of the builds under way: names of markers and finished versions, as they appear."""
    catalog = Catalog.open(uri)
    markers = [entry.path for entry in catalog.store.files("builds") if entry.path.endswith(".json")]
    return sorted(markers) + [f"finished {version}" for version in catalog.versions()]


def wait_for_milestones(build: BuildProcess, uri: str, count: int, timeout: float = 200) -> bool:
    """Waits until `count` milestones are reached (True) or the build has ended (False)."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if _count(uri) >= count:
            return True
        if not build.running:
            return False
        time.sleep(0.02)
    raise AssertionError(f"fewer than {count} milestones after {timeout} s:\n{build.tail()}")


def _count(uri: str) -> int:
    try:
        return len(milestones(uri))
    except (RemembrandtError, ConflictError):
        return 0


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.Error:
        return


Kill = Callable[[BuildProcess], Any]
