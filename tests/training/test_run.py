"""How a run starts."""

import pytest

from remembrandt.errors import ConfigError
from remembrandt.training import run
from remembrandt.training.run import check_room
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
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(run, "_ROOM_SECONDS", 0.2)
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.environment["RAY_ADDRESS"])
    check_room(99, gpu=False)
    assert "waiting until there are enough" in capfd.readouterr().err
