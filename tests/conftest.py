"""Fixtures that several rooms share: a Ray cluster, an S3 server, an Elasticsearch node; each starts at its first use.

The environment is set before any test imports torch or Ray, because both read it once, and before the cluster starts,
because Ray's workers inherit what its nodes were started with: so the S3 server's address is fixed here as well.
"""

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support.databases import *  # noqa: F403
from tests.support.elasticsearch_node import *  # noqa: F403
from tests.support.postgres import *  # noqa: F403
from tests.support.processes import free_ports
from tests.support.quiet import *  # noqa: F403
from tests.support.seaweed import BUCKET, S3Settings, SeaweedServer
from tests.support.service import *  # noqa: F403

if TYPE_CHECKING:
    from tests.support.ray_cluster import RayCluster


# Short: Ray puts UNIX sockets below it, and their paths may have 107 characters.
_SCRATCH = Path(tempfile.mkdtemp(prefix="rmb-", dir="/tmp"))
_S3 = S3Settings(port=free_ports(1)[0])

for _name in [name for name in os.environ if name.startswith(("AWS_", "RAY_", "REMEMBRANDT_"))]:
    del os.environ[_name]
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TMPDIR": str(_SCRATCH),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "REMEMBRANDT_CACHE": str(_SCRATCH / "cache"),
    "TOKENIZERS_PARALLELISM": "false",
    **_S3.environment,
}

# How long an example takes says more of the machine than of the code. All else is as Hypothesis has it: in CI its own
# profile is loaded already, which draws the same examples each time and keeps none.
settings.register_profile("tests", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# Ray starts workers through a shell without quoting Python's path.
if " " in sys.executable:
    (_SCRATCH / "venv").symlink_to(sys.prefix)
    sys.executable = str(_SCRATCH / "venv" / "bin" / "python")


def pytest_unconfigure() -> None:
    shutil.rmtree(_SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def _session_ray_cluster() -> Iterator["RayCluster"]:
    from tests.support.ray_cluster import RayCluster  # Ray reads the environment when it is imported

    with RayCluster(num_nodes=2, num_cpus=2) as cluster:
        yield cluster


@pytest.fixture
def ray_cluster(_session_ray_cluster: "RayCluster") -> "RayCluster":
    """The session's cluster: two simulated nodes of two logical CPUs; this process is a connected driver."""
    _session_ray_cluster.connect()
    return _session_ray_cluster


@pytest.fixture(scope="session")
def _session_s3_server() -> Iterator[SeaweedServer]:
    server = SeaweedServer(_SCRATCH / "seaweed", _S3)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3_server(_session_s3_server: SeaweedServer) -> SeaweedServer:
    """The session's S3 server, running; a test may `kill` and `restart` it. Its data outlives both."""
    if not _session_s3_server.running:
        _session_s3_server.start()
    return _session_s3_server


@pytest.fixture
def s3_uri(s3_server: SeaweedServer) -> str:
    """A fresh, empty `s3://bucket/prefix`; the AWS environment points at the server."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
