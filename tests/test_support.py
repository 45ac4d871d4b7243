"""The test fixtures themselves: what other tests take for granted about them."""

import os
import subprocess
import sys

import boto3
import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from remembrandt.storage import open_store
from tests.support.processes import free_ports
from tests.support.ray_cluster import RayCluster
from tests.support.seaweed import SeaweedServer


def test_a_port_is_given_once() -> None:
    assert not set(free_ports(500)) & set(free_ports(500))


@ray.remote
def _where() -> tuple[str, str]:
    return ray.get_runtime_context().get_node_id(), os.environ["AWS_ENDPOINT_URL"]


@pytest.mark.ray
def test_ray_has_two_nodes_whose_workers_know_the_s3_server(ray_cluster: RayCluster) -> None:
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    assert len(nodes) == 2
    on_each = [
        _where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)).remote() for n in nodes
    ]
    assert ray.get(on_each) == [(node, os.environ["AWS_ENDPOINT_URL"]) for node in nodes]


@pytest.mark.ray
def test_a_child_process_joins_the_cluster_by_its_environment(ray_cluster: RayCluster) -> None:
    program = "import ray; ray.init(logging_level='error'); print(len(ray.nodes()))"
    done = subprocess.run([sys.executable, "-c", program], env=ray_cluster.environment, capture_output=True, text=True)
    assert done.stdout.split()[-1:] == ["2"], done.stderr


@pytest.mark.s3
def test_objects_outlive_a_power_cut_of_the_s3_server(s3_uri: str, s3_server: SeaweedServer) -> None:
    open_store(s3_uri).write("a/b", b"kept")
    s3_server.kill()
    s3_server.start()
    assert open_store(s3_uri).read("a/b") == b"kept"


@pytest.mark.s3
def test_each_test_has_an_empty_prefix_and_the_environment_to_reach_it(s3_uri: str) -> None:
    bucket, _, prefix = s3_uri.removeprefix("s3://").partition("/")
    assert boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)["KeyCount"] == 0
