"""`jobs/sample.py` as a person runs it, and kills it."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from remembrandt.configuration import parse_config
from remembrandt.databases.database import Database
from remembrandt.errors import ConfigError, RemembrandtError, SearchError, VersionError
from remembrandt.generation import read_record
from remembrandt.generation.claim import Claim
from remembrandt.generation.job import CLAIM, SampleCascadeConfig, SampleConfig, sample_pictures
from remembrandt.storage import open_store
from tests.support.builds import REPOSITORY
from tests.support.models import TINY_RDM, save_tiny_rdm
from tests.support.processes import wait_until
from tests.support.ray_cluster import RayCluster

pytestmark = pytest.mark.ray


@pytest.fixture
def values(emoji_like_database: str, tmp_path: Path) -> dict[str, Any]:
    with Database.open(emoji_like_database) as database:
        encoder = database.manifest.encoder
    config = TINY_RDM.model_copy(update={"context_dim": 64})
    return {
        "model": str(save_tiny_rdm(tmp_path / "model", config, encoder=encoder)),
        "out": str(tmp_path / "out"),
        "database": {"uri": emoji_like_database},
        "texts": ["a red circle", "a blue square"],
        "count": 5,
        "sampler": {"solver": "ddim", "num_inference_steps": 4},
        "requests": [
            {"database": {"uri": emoji_like_database}, "strategy": {"name": "exemplars", "ids": [4]}, "seed": 77}
        ],
        "block_size": 2,
        "samplers": 1,
    }


def run(
    values: dict[str, Any], cluster: RayCluster, tmp_path: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(values, tmp_path, *arguments), env=cluster.environment, capture_output=True, text=True, timeout=300
    )


def command(values: dict[str, Any], tmp_path: Path, *arguments: str) -> list[str]:
    config = tmp_path / "sample.yaml"
    config.write_text(yaml.safe_dump(values))
    return [sys.executable, str(REPOSITORY / "jobs" / "sample.py"), "--config", str(config), *arguments]


def test_a_killed_run_goes_on_and_draws_nothing_twice(
    values: dict[str, Any], ray_cluster: RayCluster, tmp_path: Path
) -> None:
    out = Path(values["out"])
    markers = out / ".sampling" / "blocks"
    process = subprocess.Popen(command(values, tmp_path), env=ray_cluster.environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: process.poll() is not None or len(list(markers.glob("*.json"))) >= 1, "a block", 200)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stamps = {path: path.stat().st_mtime_ns for path in markers.glob("*.json")}

    done = run(values, ray_cluster, tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    # A worker of the killed driver may still have ended the block that it was at, after the markers were counted.
    assert report["pictures"] == 11 and 1 <= report["drawn_now"] <= 11 - 2 * len(stamps)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert sorted(path.name for path in (out / "pictures").iterdir()) == [f"{n:06d}.png" for n in range(11)]
    table = pq.read_table(out / "records.parquet").to_pylist()
    assert [row["seed"] for row in table] == [*range(10), 77]
    assert [n["id"] for n in table[10]["neighbors"]] == [4]
    for number, row in enumerate(table):
        record = read_record(out / "pictures" / f"{number:06d}.png")
        assert (record.seed, record.text, len(record.neighbors)) == (row["seed"], row["text"], len(row["neighbors"]))
    page = (out / "sheet.html").read_text()
    assert page.count("<img") == 4 + 5 + 4 + 5 + 1 + 1

    again = sample_pictures(parse_config(SampleConfig, values, "sample.yaml"), dry_run=True)
    assert again["drawn_now"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "/nowhere"}, "there is no model at /nowhere"),
        ({"texts": [], "requests": []}, "needs texts, prompts or images"),
        ({"guidance": 3}, "did you mean 'guidance_scale'?"),
        ({"prompts": "/nowhere.txt", "texts": []}, "cannot read prompts /nowhere.txt"),
        ({"sampler": {"num_inference_steps": 5000}}, "ask ddim for 1 to 1000"),
        ({"database": None}, "this model paints from neighbours: name a database"),
        ({"database": {"uri": "/nowhere/emoji"}}, "/nowhere/emoji"),
        ({"samplers": 0}, "samplers"),
    ],
)
def test_mistakes_are_found_before_anything_is_drawn(
    change: dict[str, Any], message: str, values: dict[str, Any]
) -> None:
    with pytest.raises(RemembrandtError, match=re.escape(message)):
        sample_pictures(parse_config(SampleConfig, {**values, **change}, "sample.yaml"), dry_run=True)
    assert not list(Path(values["out"]).rglob("*")), "a mistake takes no folder"


def test_a_cascade_needs_a_database_for_prompts_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    config = SampleCascadeConfig(model="none", out=str(tmp_path), prompts=str(tmp_path / "prompts.txt"))
    with pytest.raises(ConfigError, match="name a `database`, or set num_neighbors: 0"):
        sample_pictures(config)


def test_a_mistake_that_an_actor_finds_is_its_sentence(values: dict[str, Any], ray_cluster: RayCluster) -> None:
    ray_cluster.connect()
    (request,) = values["requests"]
    values |= {"texts": [], "requests": [{**request, "strategy": {"name": "exemplars", "ids": [99_999]}}], "count": 0}
    with pytest.raises(SearchError, match=r"^there is no row 99999: database 'drawings' has rows 0 to 319$"):
        sample_pictures(parse_config(SampleConfig, values, "sample.yaml"))


def test_a_folder_belongs_to_what_was_drawn_into_it(
    values: dict[str, Any], ray_cluster: RayCluster, tmp_path: Path
) -> None:
    ray_cluster.connect()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    values |= {"texts": [], "prompts": str(prompts), "requests": [], "count": 2}
    out, uri = open_store(values["out"]), values["database"]["uri"]

    def left(**change: Any) -> int:
        config = parse_config(SampleConfig, {**values, **change}, "sample.yaml")
        return int(sample_pictures(config, dry_run=True)["drawn_now"])

    Claim("others", {}, 4).write(out, CLAIM)
    assert left() == 2, "whoever drew nothing has nothing there"
    sample_pictures(parse_config(SampleConfig, values, "sample.yaml"))
    assert left() == left(samplers="auto", threads=2) == 0
    claim = Claim.read(out, CLAIM)
    assert claim is not None and list(claim.versions) == [uri]

    prompts.write_text("a blue square\n")
    with pytest.raises(ConfigError, match="holds pictures of other requests: name another folder, or remove it"):
        left()
    prompts.write_text("a red circle\n")
    with pytest.raises(ConfigError, match="was begun with block_size 2"):
        left(block_size=3)
    replace(claim, versions={uri: "v-of-then"}).write(out, CLAIM)
    with pytest.raises(VersionError, match="v-of-then"):
        left()
    claim.write(out, CLAIM)
    (Path(values["model"]) / "unet" / "notes.txt").write_text("trained further")
    with pytest.raises(ConfigError, match="other requests"):
        left()
