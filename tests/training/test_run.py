"""How a run starts."""

import ctypes
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import ray
import ray.train
from ray.util import placement_group, remove_placement_group

from remembrandt.distributed import num_cores
from remembrandt.errors import ConfigError
from remembrandt.training import run
from remembrandt.training.run import check_room, fit, make_trainer
from remembrandt.training.worker import share_of_cores
from tests.support.ray_cluster import RayCluster

pytestmark = pytest.mark.ray


def test_more_workers_than_this_machine_has_room_for_are_refused_and_a_cluster_s_are_waited_for(
    ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_ROOM_SECONDS", 0.2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"loop\.workers = 99 needs 99 CPUs, and of the 4 .*: use fewer workers, or"):
        check_room(99, gpu=False)
    with pytest.raises(ConfigError, match=r"needs 1 GPUs, and of the 0 that Ray has, 0 are free: use fewer workers$"):
        check_room(1, gpu=True)
    monkeypatch.setattr(run, "_ROOM_SECONDS", 10.0)
    check_room(1, gpu=False)
    assert "loop.workers" not in capfd.readouterr().err
    monkeypatch.setattr(run, "_ROOM_SECONDS", 0.2)
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.environment["RAY_ADDRESS"])
    check_room(99, gpu=False)
    assert "waiting until there are enough" in capfd.readouterr().err


def test_a_run_that_others_leave_no_room_says_so_in_a_line_and_waits(
    ray_cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(values: dict[str, Any]) -> None:
        Path(values["out"]).write_text("trained")
        ray.train.report({"step": 1})

    # As many as there are: what still ends from a test before goes to one of them, too.
    others = [placement_group([{"CPU": 1}]) for _ in range(int(ray.cluster_resources()["CPU"]))]
    ray.wait([other.ready() for other in others], num_returns=len(others), timeout=10)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        for other in others:
            remove_placement_group(other)

    monkeypatch.setattr(run, "say", say)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    out, filesystem = tmp_path / "out", pyarrow.fs.LocalFileSystem()
    fit(
        lambda: make_trainer(
            write, {"out": str(out)}, "waits", str(tmp_path), filesystem, workers=1, gpu=False, keep=1
        ),
        max_failures=0,
    )
    assert out.read_text() == "trained"
    assert lines[0] == "no room for 1 workers: waiting until there is"
    logs = list(Path(os.environ["RAY_TMPDIR"]).glob("**/session_latest/logs/worker-*.err"))
    printed = "".join(path.read_text() for path in logs)
    assert logs and "StartupTimeout" not in printed and "Reporting" not in printed


def test_a_worker_has_its_share_of_the_node_s_cores(ray_cluster: RayCluster, tmp_path: Path) -> None:
    """Ray gives a worker of one CPU one OpenMP thread, however many cores the machine has."""

    def count(values: dict[str, Any]) -> None:
        Path(values["out"], str(ray.train.get_context().get_world_rank())).write_text(str(share_of_cores()))

    def shares(workers: int) -> list[int]:
        out = tmp_path / str(workers)
        out.mkdir()
        filesystem = pyarrow.fs.LocalFileSystem()
        make_trainer(
            count, {"out": str(out)}, "count", str(tmp_path), filesystem, workers=workers, gpu=False, keep=1
        ).fit()
        return [int(path.read_text()) for path in out.iterdir()]

    cores = min(num_cores(), ray_cluster.num_cpus)
    assert shares(1) == [cores]
    two = shares(2)
    assert len(two) == 2 and 2 <= sum(two) <= max(2, cores * ray_cluster.num_nodes)


def test_threads_of_a_worker_do_not_share_what_they_allocate_from(ray_cluster: RayCluster, tmp_path: Path) -> None:
    """By itself glibc has eight arenas a core; a worker has more threads than that, of Ray and of torch."""
    threads = 8 * (os.cpu_count() or 1) + 8

    def count(values: dict[str, Any]) -> None:
        libc = ctypes.CDLL(None)
        libc.fopen.restype = ctypes.c_void_p
        allocated, seen = threading.Barrier(threads + 1), threading.Event()

        def allocate() -> None:
            libc.malloc(1000)
            allocated.wait()
            seen.wait()

        for _ in range(threads):
            threading.Thread(target=allocate).start()
        allocated.wait()
        stream = ctypes.c_void_p(libc.fopen(values["out"].encode(), b"w"))
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        seen.set()

    out = tmp_path / "arenas.xml"
    filesystem = pyarrow.fs.LocalFileSystem()
    make_trainer(count, {"out": str(out)}, "arenas", str(tmp_path), filesystem, workers=1, gpu=False, keep=1).fit()
    assert out.read_text().count("<heap ") > threads
