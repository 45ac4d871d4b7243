"""`jobs/precompute_neighbors.py` as a person runs it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from remembrandt.databases.neighbors import Neighbors
from tests.support.ray_cluster import RayCluster

pytestmark = pytest.mark.ray


@pytest.fixture
def config(emoji_like_database: str, tmp_path: Path) -> Path:
    """The drawings as queries among themselves, by BM25."""
    values = {
        "database": emoji_like_database,
        "train_set": {"kind": "database", "uri": emoji_like_database},
        "out": str(tmp_path / "neighbors"),
        "search": {"num_neighbors": 3, "similarities": ["bm25"]},
    }
    path = tmp_path / "neighbors.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(ray_cluster: RayCluster, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/precompute_neighbors.py", "--config", str(config), *arguments]
    environment = ray_cluster.environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_it_says_what_it_would_do_does_it_and_prints_the_result_as_json(ray_cluster: RayCluster, config: Path) -> None:
    planned = run(ray_cluster, config, "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    plan: dict[str, Any] = json.loads(planned.stdout)
    assert (plan["finished"], plan["items"], plan["similarities"]) == (False, 320, ["bm25"])
    assert not Path(plan["out"]).exists()

    done = run(ray_cluster, config, "--json", "workers.block_size=200")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert (result["finished"], result["queries"], result["blocks"]) == (True, 320, 2)
    assert "neighbours: 320/320 queries" in done.stderr
    assert "for each of 320 queries" in done.stderr
    assert Neighbors.open(result["out"]).take([0, 319]).ids.shape == (2, 3)


def test_a_mistake_is_one_line_and_exit_code_2(ray_cluster: RayCluster, config: Path) -> None:
    refused = run(ray_cluster, config, "search.num_neighbors=400")
    assert refused.returncode == 2
    (line,) = [line for line in refused.stderr.splitlines() if "Ray" not in line and "ray" not in line]
    assert line.startswith("error: num_neighbors 400 is too many")
    assert not refused.stdout


def test_the_shipped_configurations_are_valid() -> None:
    from remembrandt.configuration import load_config
    from remembrandt.databases.neighbors import PrecomputeConfig

    shipped = sorted(Path("jobs/configs/precompute_neighbors").glob("*.yaml"))
    assert shipped
    for path in shipped:
        load_config(PrecomputeConfig, path)
