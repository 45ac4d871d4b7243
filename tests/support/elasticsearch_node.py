"""A real Elasticsearch: the development node of `cluster/elasticsearch`, built once and started for the session."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from elasticsearch import ApiError, Elasticsearch, TransportError

from tests.support.processes import Server, free_ports, listens

_PROJECT = Path(__file__).parents[2] / "cluster" / "elasticsearch"
_LAUNCHER = _PROJECT / "run.sh"
_MISSING_TOOL = 3  # the launcher's exit status when there is no JDK or no Maven

for _name in [name for name in os.environ if name.startswith("ELASTICSEARCH_")]:
    del os.environ[_name]

__all__ = ["ElasticsearchNode", "_session_elasticsearch_node", "elasticsearch_node", "elasticsearch_url"]


class ElasticsearchNode(Server):
    """One node on 127.0.0.1. Data outlives `kill` (a power cut) and `restart`, on the same port."""

    def __init__(self, folder: Path, settings: tuple[str, ...] = ()) -> None:
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [_LAUNCHER, folder / "data", str(self.port), *settings]
        super().__init__(command, folder / "node.log", self._answers, ready_timeout=180)

    def client(self) -> Elasticsearch:
        """A plain client, for a test to look behind the product's back."""
        return Elasticsearch(self.url, request_timeout=60)

    def _answers(self) -> bool:
        """Whether shards that were there before are searchable again; the port opens earlier."""
        if not listens(self.port):
            return False
        with self.client() as client:
            try:
                health = client.options(request_timeout=5).cluster.health(wait_for_status="yellow", timeout="2s")
            except (ApiError, TransportError):
                return False
            return not health["timed_out"]


def build_launcher() -> None:
    """Builds the node unless that is done. Without a JDK or Maven the test is skipped, and in CI fails."""
    _PROJECT.joinpath("target").mkdir(exist_ok=True)
    with (_PROJECT / "target" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([_LAUNCHER, "--build"], capture_output=True, text=True, timeout=600)
    if done.returncode == 0:
        return
    reason = (done.stderr.strip() or done.stdout.strip())[-2000:]
    if done.returncode == _MISSING_TOOL and not os.environ.get("CI"):
        pytest.skip(reason)
    pytest.fail(f"no Elasticsearch to test with: {reason}", pytrace=False)


@pytest.fixture(scope="session")
def _session_elasticsearch_node() -> Iterator[ElasticsearchNode]:
    build_launcher()
    folder = Path(tempfile.mkdtemp(prefix="rmb-es-"))
    node = ElasticsearchNode(folder)
    node.start()
    yield node
    node.kill()
    shutil.rmtree(folder)


@pytest.fixture
def elasticsearch_node(_session_elasticsearch_node: ElasticsearchNode) -> ElasticsearchNode:
    """The session's node, running; a test may `kill` and `restart` it."""
    if not _session_elasticsearch_node.running:
        _session_elasticsearch_node.start()
    return _session_elasticsearch_node


@pytest.fixture
def elasticsearch_url(elasticsearch_node: ElasticsearchNode) -> str:
    """Address of the session's node."""
    return elasticsearch_node.url
