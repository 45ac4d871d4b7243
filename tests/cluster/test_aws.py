"""cluster/aws.yaml: what `ray up` reads, by Ray's own validation."""

import copy
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.support.manifests import REPOSITORY

CONFIG: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster" / "aws.yaml").read_text())


def prepared(change: Callable[[dict[str, Any]], object] = lambda config: None) -> dict[str, Any]:
    """As `ray up` does before it talks to the cloud."""
    config = copy.deepcopy(CONFIG)
    change(config)
    filled_out = prepare_config(config)
    validate_config(filled_out)
    return filled_out


def test_ray_accepts_it() -> None:
    config = prepared()

    assert set(config["available_node_types"]) == {"head", "retrieval", "gpu"}
    assert sum(kind["max_workers"] for kind in config["available_node_types"].values()) <= config["max_workers"]


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(max_worker=3),
        lambda config: config.update(max_workers="many"),
        lambda config: config["available_node_types"]["gpu"].update(minimum=1),
        lambda config: config["docker"].update(images="remembrandt:0.1.0"),
        lambda config: config["provider"].pop("type"),
    ],
)
def test_ray_refuses_what_is_misspelt(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises((jsonschema.ValidationError, KeyError)):
        prepared(change)


def test_ray_refuses_a_head_that_is_no_node_type() -> None:
    with pytest.raises((ValueError, KeyError)):
        prepared(lambda config: config.update(head_node_type="master"))


def test_the_head_takes_no_work_and_all_nodes_ask_for_a_token() -> None:
    config = prepared()
    start_head = config["head_start_ray_commands"][-1]
    start_worker = config["worker_start_ray_commands"][-1]

    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in start_head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start_head
    assert "RAY_AUTH_MODE=token" in start_head
    assert "RAY_AUTH_MODE=token" in start_worker
    assert "$RAY_HEAD_IP" in start_worker


def test_only_machines_with_the_roles_keys_reach_s3() -> None:
    for name, kind in CONFIG["available_node_types"].items():
        options = kind["node_config"]["MetadataOptions"]
        assert options == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
        assert ("IamInstanceProfile" in kind["node_config"]) is (name != "head")
