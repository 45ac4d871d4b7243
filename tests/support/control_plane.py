"""A real API server with the real KubeRay operator, as `tests/k8s/kit/build.sh` builds them; `make test-k8s` does.

Nothing runs in the pods: `Kubelet` writes into their status what a node would, so that the operator goes on.
"""

import base64
import gzip
import json
import os
import secrets
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from tests.support.manifests import ASSETS, REPOSITORY, Document
from tests.support.processes import Server, free_ports, listens, wait_until

KIT = REPOSITORY / ".cache" / "k8s"


class ControlPlane:
    """etcd, kube-apiserver, kube-controller-manager and the operator on 127.0.0.1. A context manager.

    It has neither nodes nor a scheduler; pods are admitted (Pod Security included), and stay where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._token = secrets.token_hex(16)
        etcd, peer, api, manager, metrics, health = free_ports(6)
        self._api, self._etcd, self._peer = api, etcd, peer
        self._ports = (manager, metrics, health)
        self.kubeconfig = folder / "kubeconfig"
        self._servers: list[Server] = []

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start_etcd()
            self._start_api_server()
            self._start_controllers()
            self._install_crds()
            self._start_operator()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in reversed(self._servers):
            server.stop()

    def kubectl(
        self, *arguments: str, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs kubectl as a cluster admin."""
        result = subprocess.run(
            [KIT / "bin" / "kubectl", *arguments],
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self._folder)},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or result.returncode == 0, result.stderr
        return result

    def items(self, kind: str, namespace: str, labels: str = "") -> list[Document]:
        """All objects of a kind."""
        selector = ["-l", labels] if labels else []
        return json.loads(self.kubectl("get", kind, "-n", namespace, *selector, "-o", "json").stdout)["items"]

    def apply(self, documents: list[Document], *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`kubectl apply` on the server's side, unknown and doubled fields refused."""
        text = yaml.safe_dump_all(documents)
        return self.kubectl("apply", "--server-side", "--validate=strict", *options, "-f", "-", check=check, stdin=text)

    def request(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """One call of the API."""
        authority = ssl.create_default_context(cafile=self._folder / "pki" / "apiserver.crt")
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=authority)
        )
        request = urllib.request.Request(
            f"https://127.0.0.1:{self._api}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": kind},
        )
        with opener.open(request, timeout=10) as answer:
            return json.load(answer)

    def _start(self, name: str, port: int, *options: str, ready: Any = None) -> None:
        server = Server(
            [KIT / "bin" / name, *options],
            log=self._folder / f"{name}.log",
            ready=ready or (lambda: listens(port)),
            environment={**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self._folder)},
        )
        self._servers.append(server)
        server.start()

    def _start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self._etcd}", f"http://127.0.0.1:{self._peer}"
        self._start(
            "etcd",
            self._etcd,
            f"--data-dir={self._folder / 'etcd'}",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )

    def _start_api_server(self) -> None:
        pki = self._folder / "pki"
        pki.mkdir(exist_ok=True)
        key, tokens = pki / "accounts.key", pki / "tokens.csv"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        tokens.touch(mode=0o600)
        tokens.write_text(f"{self._token},admin,admin,system:masters\n")
        self._write_kubeconfig(pki / "apiserver.crt")
        self._start(
            "kube-apiserver",
            self._api,
            f"--etcd-servers=http://127.0.0.1:{self._etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._api}",
            f"--cert-dir={pki}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--endpoint-reconciler-type=none",
            "--profiling=false",
            ready=self._answers,
        )

    def _answers(self) -> bool:
        if not (self._folder / "pki" / "apiserver.crt").exists():
            return False
        return self.kubectl("get", "--raw", "/readyz", check=False).returncode == 0

    def _write_kubeconfig(self, authority: Path) -> None:
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {"server": f"https://127.0.0.1:{self._api}", "certificate-authority": str(authority)},
                }
            ],
            "users": [{"name": "admin", "user": {"token": self._token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(yaml.safe_dump(content))

    def _start_controllers(self) -> None:
        port = self._ports[0]
        self._start(
            "kube-controller-manager",
            port,
            *(
                f"--{name}={self.kubeconfig}"
                for name in ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
            ),
            f"--service-account-private-key-file={self._folder / 'pki' / 'accounts.key'}",
            f"--root-ca-file={self._folder / 'pki' / 'apiserver.crt'}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={self._folder / 'pki-controllers'}",
            "--controllers=*,-node-ipam-controller,-node-lifecycle-controller,-taint-eviction-controller",
        )

    def _install_crds(self) -> None:
        monitors = self._folder / "podmonitors.json"
        monitors.write_bytes(gzip.decompress((ASSETS / "podmonitors.json.gz").read_bytes()))
        self.kubectl("apply", "--server-side", "-f", str(KIT / "crds"), "-f", str(monitors))
        wait_until(self._knows_crds, "CRDs established", interval=0.5)

    def _knows_crds(self) -> bool:
        definitions = json.loads(self.kubectl("get", "crd", "-o", "json").stdout)["items"]
        conditions = [definition.get("status", {}).get("conditions") or [] for definition in definitions]
        return all({"Established"} <= {c["type"] for c in found if c["status"] == "True"} for found in conditions)

    def _start_operator(self) -> None:
        _, metrics, health = self._ports
        self._start(
            "kuberay-operator",
            health,
            "--enable-leader-election=false",
            f"--metrics-addr=127.0.0.1:{metrics}",
            f"--health-probe-bind-address=127.0.0.1:{health}",
            "--log-stdout-encoder=console",
        )


class Kubelet:
    """Marks every pod as running and ready, and lets deleted pods go. A context manager; works in a thread."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=30)
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._end.wait(0.5):
                for pod in self._plane.request("GET", "/api/v1/pods")["items"]:
                    self._tend_if_there(pod)
        except (OSError, KeyError, ValueError) as error:
            self._failure = error

    def _tend_if_there(self, pod: Document) -> None:
        try:
            self._tend(pod)
        except urllib.error.HTTPError as error:
            if error.code not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):  # gone or changed meanwhile
                raise

    def _tend(self, pod: Document) -> None:
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        if pod["metadata"].get("deletionTimestamp"):
            self._plane.request("DELETE", path, {"gracePeriodSeconds": 0})
        elif pod["status"].get("phase") != "Running":
            status = {"status": _running(pod["spec"]["containers"])}
            self._plane.request("PATCH", f"{path}/status", status, "application/strategic-merge-patch+json")


def _running(containers: list[Document]) -> Document:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    address = "127.0.0.1"
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "hostIP": address,
        "startTime": now,
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": now}
            for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        ],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "none",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": now}},
            }
            for container in containers
        ],
    }


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The session's control plane, with a kubelet that lets every pod run."""
    if not (KIT / "built").exists():
        pytest.skip("the control plane is not built: make test-k8s")
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as plane, Kubelet(plane):
        yield plane


def decoded(secret: Document, key: str) -> str:
    """A value of a Secret."""
    return base64.b64decode(secret["data"][key]).decode()
