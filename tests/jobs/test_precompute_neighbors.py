"""`jobs/precompute_neighbors.py` as a person runs it, and kills it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from remembrandt.configuration import load_config
from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID
from remembrandt.databases.neighbors import Neighbors, PrecomputeConfig
from remembrandt.errors import VersionError
from tests.support.builds import REPOSITORY, run_job_here
from tests.support.processes import wait_until
from tests.support.ray_cluster import RayCluster

pytestmark = pytest.mark.ray


@pytest.fixture
def values(emoji_like_database: str, tmp_path: Path) -> dict[str, Any]:
    """The drawings among themselves, in many small blocks."""
    return {
        "database": emoji_like_database,
        "train_set": {"kind": "database", "uri": emoji_like_database},
        "out": str(tmp_path / "neighbors"),
        "search": {"num_neighbors": 3, "similarities": ["clip", "bm25"]},
        "workers": {"block_size": 8, "searchers": 1},
    }


@pytest.fixture
def command(values: dict[str, Any], tmp_path: Path) -> list[str]:
    config = tmp_path / "neighbors.yaml"
    config.write_text(yaml.safe_dump(values))
    return [sys.executable, str(REPOSITORY / "jobs" / "precompute_neighbors.py"), "--config", str(config)]


def run(command: list[str], cluster: RayCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = cluster.environment
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(command: list[str]) -> None:
    code, out, err = run_job_here("precompute_neighbors", *command[2:], "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert (plan["finished"], plan["items"], plan["blocks"]) == (False, 320, 40)
    assert not Path(plan["out"]).exists()


def test_a_killed_run_is_finished_by_running_it_again(
    command: list[str], values: dict[str, Any], ray_cluster: RayCluster, tmp_path: Path
) -> None:
    building = tmp_path / ".neighbors.building"
    with subprocess.Popen(command, env=ray_cluster.environment, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: process.poll() is not None or len(list(building.rglob("*.json"))) > 2, "blocks", 200, 0.01)
        process.kill()
    assert 2 < len(list(building.rglob("*.json"))) < 40
    with pytest.raises(VersionError, match="no finished neighbours"):
        Neighbors.open(values["out"])

    done = run(command, ray_cluster, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["finished"], report["queries"], report["incomplete"]["clip"]) == (True, 320, 0)
    assert "neighbours: 320/320 queries" in done.stderr
    assert not list(building.rglob("*.json"))
    with Database.open(values["database"]) as database:
        rows = database.rows(range(320))
        every = database.search_ids(range(320), 319)
    for query, ids in enumerate(Neighbors.open(values["out"]).take(range(320)).ids):
        group, digest = rows[query].group, rows[query].digest
        kept = [n for n in every.ids[query] if rows[n].group != group and rows[n].digest != digest]
        assert ids.tolist() == kept[:3]
    by_bm25 = Neighbors.open(values["out"], similarity="bm25").take(range(320)).ids
    assert not np.any(by_bm25 == np.arange(320)[:, None]) and (by_bm25 != PAD_ID).any(axis=1).all()


def test_a_mistake_is_one_line_and_exit_code_2(command: list[str]) -> None:
    code, out, err = run_job_here("precompute_neighbors", *command[2:], "search.num_neighbors=400")
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in err, err
    assert "num_neighbors 400 is too many: database 'drawings' has 320 rows" in errors[0]


def test_the_shipped_configurations_are_valid() -> None:
    shipped = sorted((REPOSITORY / "jobs" / "configs" / "precompute_neighbors").glob("*.yaml"))
    assert len(shipped) == 2
    for path in shipped:
        load_config(PrecomputeConfig, path)
