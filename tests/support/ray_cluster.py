"""A local Ray cluster of several simulated nodes, ended with the process that started it."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.cluster_utils import Cluster

from tests.support.processes import free_ports

# Serve reads them when it is imported, here and in every process of the cluster: it is set up as by cluster/.
os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
os.environ.setdefault("RAY_SERVE_HAPROXY_BINARY_PATH", str(Path(sys.executable).parent / "remembrandt-haproxy"))
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
os.environ.setdefault("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", "1000000000")
# Serve would wait half a minute for balancers that still send requests; there are none.
os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "3")
for _name, _port in zip(("STATS", "METRICS"), free_ports(2), strict=True):
    os.environ.setdefault(f"RAY_SERVE_HAPROXY_{_name}_PORT", str(_port))

OBJECT_STORE_BYTES = 250_000_000


@dataclass(frozen=True)
class RayNode:
    """One simulated node: its id in Ray, and the handle by which the cluster removes it."""

    node_id: str
    handle: Any


class RayCluster:
    """`num_nodes` raylets on this machine with `num_cpus` logical CPUs each; this process is connected as a driver.

    The node address is the machine's own, as Ray finds it: with 127.0.0.1 the second node would look for the first at
    another address.
    """

    def __init__(self, num_nodes: int = 2, num_cpus: int = 2) -> None:
        self.num_nodes, self.num_cpus = num_nodes, num_cpus
        self._cluster: Cluster | None = None

    @property
    def address(self) -> str:
        """host:port, for `ray.init(address=…)` or RAY_ADDRESS."""
        assert self._cluster is not None, "not started"
        return str(self._cluster.address)

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment plus RAY_ADDRESS: for a job started as a child process."""
        return {**os.environ, "RAY_ADDRESS": self.address}

    def start(self) -> None:
        """Starts all nodes and connects this process."""
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": self.num_cpus,
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
            },
        )
        for _ in range(self.num_nodes - 1):
            self.add_node()
        self._cluster.wait_for_nodes()
        self.connect()

    def connect(self) -> None:
        """Connects this process as a driver, if it is not connected."""
        if not ray.is_initialized():
            ray.init(address=self.address, log_to_driver=False, logging_level="warning")

    def add_node(self) -> RayNode:
        """One more node, alive when this returns."""
        assert self._cluster is not None, "not started"
        node = self._cluster.add_node(num_cpus=self.num_cpus, object_store_memory=OBJECT_STORE_BYTES)
        return RayNode(str(node.node_id), node)

    def remove_node(self, node: RayNode) -> None:
        """Kills a node (never the head) with all its workers, as a machine that is lost."""
        assert self._cluster is not None, "not started"
        self._cluster.remove_node(node.handle, allow_graceful=False)

    def stop(self) -> None:
        """Disconnects and ends every process of the cluster."""
        ray.shutdown()
        if self._cluster is not None:
            self._cluster.shutdown()
            self._cluster = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
