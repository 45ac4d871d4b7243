"""What a real API server and the real KubeRay operator make of the manifests; run by `make test-k8s`.

No pod runs here: what is seen is what Kubernetes was asked for, and that nothing was refused on the way.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.control_plane import ControlPlane, decoded
from tests.support.manifest_rules import cluster_spec
from tests.support.manifests import K8S, Document, compose, render, roots
from tests.support.processes import wait_until

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(600)]
NAMESPACE = "remembrandt"
S3 = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"}
OVERLAYS = K8S / "overlays"


def name_of(root: Path) -> str:
    return str(root.relative_to(K8S))


def environment(container: Document) -> dict[str, Document]:
    return {entry["name"]: entry for entry in container["env"]}


def ray_container(pod: Document) -> Document:
    """Ray's own: KubeRay takes the first."""
    return pod["spec"]["containers"][0]


def secret_of(container: Document, name: str) -> tuple[str, str]:
    reference = environment(container)[name]["valueFrom"]["secretKeyRef"]
    return reference["name"], reference["key"]


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> ControlPlane:
    """With the whole of overlays/dev applied, and one more cluster and both jobs beside it."""
    control_plane.apply([next(d for d in render(K8S / "base") if d["kind"] == "Namespace")])
    for root in (
        OVERLAYS / "dev",
        *(OVERLAYS / "dev" / name for name in ("interactive", "build-index", "train-reimagen")),
    ):
        control_plane.apply(render(root))
    return control_plane


def pods_of(plane: ControlPlane, labels: str, count: int) -> list[Document]:
    """The pods with these labels, as soon as there are so many."""
    wait_until(lambda: len(plane.items("pods", NAMESPACE, labels)) == count, f"{count} pods {labels}", interval=1)
    return plane.items("pods", NAMESPACE, labels)


def cluster_of(plane: ControlPlane, kind: str, name: str) -> Document:
    """The RayCluster that the operator made for a RayService or a RayJob, once its pods are ready."""
    labels = f"ray.io/originated-from-crd={kind},ray.io/originated-from-cr-name={name}"

    def ready() -> bool:
        found = plane.items("rayclusters", NAMESPACE, labels)
        return len(found) == 1 and found[0].get("status", {}).get("state") == "ready"

    wait_until(ready, f"the cluster of {kind} {name}", timeout=120, interval=1)
    return plane.items("rayclusters", NAMESPACE, labels)[0]


@pytest.mark.parametrize("root", roots(), ids=name_of)
def test_the_api_server_takes_every_overlay_strictly(root: Path, plane: ControlPlane) -> None:
    answer = plane.apply(render(root), "--dry-run=server", "--force-conflicts")

    assert answer.stdout.count("serverside-applied") == len(render(root))
    assert "Warning" not in answer.stderr, answer.stderr


def test_the_api_server_takes_the_components_strictly(plane: ControlPlane, tmp_path: Path) -> None:
    documents = compose(tmp_path, OVERLAYS / "gpu", "elasticsearch", "monitoring")

    answer = plane.apply(documents, "--dry-run=server", "--force-conflicts")

    assert "elasticsearch.elasticsearch.k8s.elastic.co/remembrandt" in answer.stdout
    assert "podmonitor.monitoring.coreos.com/ray" in answer.stdout


def test_client_side_apply_is_as_strict(plane: ControlPlane) -> None:
    plane.kubectl("apply", "--validate=strict", "--dry-run=server", "-k", str(OVERLAYS / "gpu"))


def test_everything_but_the_service_can_be_applied_first(plane: ControlPlane) -> None:
    selector = "app.kubernetes.io/component!=serve"
    answer = plane.kubectl("apply", "--dry-run=client", "-o", "name", "-k", str(OVERLAYS / "dev"), "-l", selector)

    assert "statefulset.apps/redis" in answer.stdout
    assert "rayservice" not in answer.stdout


def test_an_unknown_field_is_refused(plane: ControlPlane) -> None:
    cluster = next(d for d in copy.deepcopy(render(K8S / "interactive")) if d["kind"] == "RayCluster")
    cluster["spec"]["enableInTreeAutoScaling"] = True

    answer = plane.apply([cluster], "--dry-run=server", check=False)

    assert answer.returncode != 0
    assert "enableInTreeAutoScaling" in answer.stderr


def min_above_max(spec: Document) -> None:
    spec["workerGroupSpecs"][0]["minReplicas"] = 9


def request_above_limit(spec: Document) -> None:
    spec["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "3"


def missing_volume(spec: Document) -> None:
    spec["headGroupSpec"]["template"]["spec"]["volumes"] = []


@pytest.mark.parametrize("change", [min_above_max, request_above_limit, missing_volume])
def test_what_our_own_rules_catch_the_api_server_takes(change: Callable[[Document], None], plane: ControlPlane) -> None:
    """Why tests/support/manifest_rules.py exists: if one of these fails some day, its rule may go."""
    cluster = next(d for d in copy.deepcopy(render(K8S / "interactive")) if d["kind"] == "RayCluster")
    cluster["metadata"]["name"] = "broken"
    change(cluster_spec(cluster))

    assert plane.apply([cluster], "--dry-run=server").returncode == 0


def test_the_service_gets_a_cluster_with_a_head_that_takes_no_work(plane: ControlPlane) -> None:
    cluster = cluster_of(plane, "RayService", "remembrandt")
    (head,) = pods_of(plane, f"ray.io/cluster={cluster['metadata']['name']},ray.io/node-type=head", 1)
    container = ray_container(head)

    assert "ray start --head" in container["args"][0]
    assert "--num-cpus=0" in container["args"][0]
    assert container["image"] == "remembrandt:0.1.0"
    assert container["resources"]["limits"]["memory"] == "4Gi"
    assert secret_of(container, "REMEMBRANDT_ACCOUNTS") == ("remembrandt-accounts", "url")
    assert {secret_of(container, name) for name in S3} == {("remembrandt-s3", name) for name in S3}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/cache", "/dev/shm"}
    assert container["livenessProbe"] and container["readinessProbe"]


def test_a_heads_state_outlives_it_in_redis(plane: ControlPlane) -> None:
    cluster = cluster_of(plane, "RayService", "remembrandt")
    (head,) = pods_of(plane, f"ray.io/cluster={cluster['metadata']['name']},ray.io/node-type=head", 1)
    container = ray_container(head)

    assert environment(container)["RAY_REDIS_ADDRESS"]["value"] == "redis:6379"
    assert secret_of(container, "REDIS_PASSWORD") == ("remembrandt-redis", "password")
    assert head["metadata"]["annotations"]["ray.io/ft-enabled"] == "true"
    (redis,) = pods_of(plane, "app.kubernetes.io/name=redis", 1)
    claims = [v["persistentVolumeClaim"]["claimName"] for v in redis["spec"]["volumes"] if "persistentVolumeClaim" in v]
    assert claims == ["data-redis-0"]


def test_samplers_and_retrieval_have_nodes_of_their_own(plane: ControlPlane) -> None:
    cluster = cluster_of(plane, "RayService", "remembrandt")["metadata"]["name"]

    for group, resource in (("samplers", "sampler"), ("retrieval", "retrieval")):
        (pod,) = pods_of(plane, f"ray.io/cluster={cluster},ray.io/group={group}", 1)
        container = ray_container(pod)
        assert f"--resources='{{\"{resource}\":1}}'" in container["args"][0]
        assert container["resources"]["limits"] == {"cpu": "2", "memory": "5Gi"}
        assert pod["spec"]["restartPolicy"] == "Never"
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert "8000" in str(container["readinessProbe"]), "a worker is ready when its Serve proxy is"
        assert secret_of(container, "REMEMBRANDT_ACCOUNTS") == ("remembrandt-accounts", "url")


def test_every_worker_gets_a_volume_for_its_cache(plane: ControlPlane) -> None:
    cluster = cluster_of(plane, "RayService", "remembrandt")["metadata"]["name"]
    (pod,) = pods_of(plane, f"ray.io/cluster={cluster},ray.io/group=retrieval", 1)
    claim = f"{pod['metadata']['name']}-cache"

    wait_until(lambda: claim in {c["metadata"]["name"] for c in plane.items("pvc", NAMESPACE)}, claim, interval=1)
    found = {c["metadata"]["name"]: c for c in plane.items("pvc", NAMESPACE)}
    assert found[claim]["spec"]["resources"]["requests"]["storage"] == "1Gi"


@pytest.mark.parametrize(("kind", "name"), [("RayService", "remembrandt"), ("RayJob", "build-index")])
def test_clusters_are_scaled_by_autoscaler_v2(kind: str, name: str, plane: ControlPlane) -> None:
    cluster = cluster_of(plane, kind, name)["metadata"]["name"]
    (head,) = pods_of(plane, f"ray.io/cluster={cluster},ray.io/node-type=head", 1)

    assert [container["name"] for container in head["spec"]["containers"]] == ["ray-head", "autoscaler"]
    assert environment(ray_container(head))["RAY_enable_autoscaler_v2"]["value"] == "true"
    assert head["spec"]["restartPolicy"] == "Never"
    accounts = {account["metadata"]["name"] for account in plane.items("serviceaccounts", NAMESPACE)}
    assert head["spec"]["serviceAccountName"] in accounts


def test_every_node_asks_for_the_clusters_own_token(plane: ControlPlane) -> None:
    tokens = set()
    for kind, name in (("RayService", "remembrandt"), ("RayJob", "build-index"), ("RayJob", "train-reimagen")):
        cluster = cluster_of(plane, kind, name)["metadata"]["name"]
        for pod in plane.items("pods", NAMESPACE, f"ray.io/cluster={cluster}"):
            container = ray_container(pod)
            assert environment(container)["RAY_AUTH_MODE"]["value"] == "token"
            assert secret_of(container, "RAY_AUTH_TOKEN") == (cluster, "auth_token")
        (secret,) = [s for s in plane.items("secrets", NAMESPACE) if s["metadata"]["name"] == cluster]
        tokens.add(decoded(secret, "auth_token"))

    assert len(tokens) == 3
    assert all(len(token) >= 32 for token in tokens)


@pytest.mark.parametrize("name", ["build-index", "train-reimagen"])
def test_a_job_is_submitted_to_a_cluster_of_its_own(name: str, plane: ControlPlane) -> None:
    cluster = cluster_of(plane, "RayJob", name)["metadata"]["name"]
    (submitter,) = pods_of(plane, f"job-name={name}", 1)
    (container,) = submitter["spec"]["containers"]

    (job,) = [job for job in render(OVERLAYS / "dev" / name) if job["kind"] == "RayJob"]
    assert job["spec"]["entrypoint"].split()[1] in " ".join([*container["command"], *container["args"]])
    assert environment(container)["RAY_DASHBOARD_ADDRESS"]["value"].startswith(f"{cluster}-head-svc")
    assert secret_of(container, "RAY_AUTH_TOKEN") == (cluster, "auth_token")
    assert submitter["metadata"]["labels"]["app.kubernetes.io/component"] == "job", "or the network keeps it out"


def test_the_interactive_cluster_starts_with_a_head_and_a_workspace(plane: ControlPlane) -> None:
    def ready() -> bool:
        (cluster,) = [c for c in plane.items("rayclusters", NAMESPACE) if c["metadata"]["name"] == "interactive"]
        return cluster.get("status", {}).get("state") == "ready"

    wait_until(ready, "the interactive cluster", timeout=120, interval=1)
    (head,) = pods_of(plane, "ray.io/cluster=interactive", 1)
    assert {"claimName": "workspace"} in [volume.get("persistentVolumeClaim") for volume in head["spec"]["volumes"]]
    services = {service["metadata"]["name"]: service for service in plane.items("services", NAMESPACE)}
    ports = {port["name"]: port["port"] for port in services["interactive-head-svc"]["spec"]["ports"]}
    assert ports["dashboard"] == 8265


def test_budgets_count_the_operators_pods(plane: ControlPlane) -> None:
    cluster_of(plane, "RayService", "remembrandt")

    def counted() -> bool:
        budgets = plane.items("poddisruptionbudgets", NAMESPACE)
        return len(budgets) == 4 and all(b.get("status", {}).get("currentHealthy") == 1 for b in budgets)

    wait_until(counted, "every budget to see a healthy pod", timeout=90, interval=1)
    for budget in plane.items("poddisruptionbudgets", NAMESPACE):
        assert budget["status"]["disruptionsAllowed"] == 0
        reasons = {condition["reason"] for condition in budget["status"]["conditions"]}
        assert reasons == {"InsufficientPods"}, "SyncFailed would mean that it protects nothing"


def test_policies_select_the_operators_pods(plane: ControlPlane) -> None:
    cluster_of(plane, "RayService", "remembrandt")
    cluster_of(plane, "RayJob", "build-index")

    policies = {policy["metadata"]["name"]: policy["spec"] for policy in plane.items("networkpolicies", NAMESPACE)}
    unselected = []
    for name, spec in policies.items():
        exact = [f"{key}={value}" for key, value in spec["podSelector"].get("matchLabels", {}).items()]
        expressions = spec["podSelector"].get("matchExpressions", [])
        exact += [f"{e['key']} {e['operator'].lower()} ({','.join(e['values'])})" for e in expressions]
        if not plane.items("pods", NAMESPACE, ",".join(exact)):
            unselected.append(name)
    assert "default-deny" in policies
    assert unselected == []


def test_nothing_was_refused(plane: ControlPlane) -> None:
    """Pod Security, quotas and the operator refuse in events alone."""
    for kind, name in (("RayService", "remembrandt"), ("RayJob", "build-index"), ("RayJob", "train-reimagen")):
        cluster_of(plane, kind, name)
    pods_of(plane, "app.kubernetes.io/part-of=remembrandt,app.kubernetes.io/name in (redis,postgres,s3)", 3)

    bad = ("Invalid", "FailedToCreate", "FailedCreate", "FailedToReconcile")
    events = [event for event in plane.items("events", NAMESPACE) if event["reason"].startswith(bad)]
    # On a busy machine the operator sees late what it has created, creates it once more, and goes on.
    refused = [event for event in events if not event["message"].endswith("already exists")]
    assert [f"{event['involvedObject']['name']}: {event['message']}" for event in refused] == []


def test_samplers_ask_for_a_gpu_in_the_gpu_overlay(plane: ControlPlane, tmp_path: Path) -> None:
    """Beside overlays/dev, in a namespace of its own."""
    documents = compose(tmp_path, OVERLAYS / "gpu")
    for document in documents:
        if document["kind"] == "Namespace":
            document["metadata"]["name"] = "gpu"
        else:
            document["metadata"]["namespace"] = "gpu"
    plane.apply(documents)

    wait_until(
        lambda: len(plane.items("pods", "gpu", "ray.io/group=retrieval")) == 2, "retrieval pods", 120, interval=1
    )
    (sampler,) = plane.items("pods", "gpu", "ray.io/group=samplers")
    container = ray_container(sampler)
    assert container["image"] == "remembrandt:0.1.0-gpu"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "--num-gpus=1" in container["args"][0]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in sampler["spec"]["tolerations"]
    retrieval = ray_container(plane.items("pods", "gpu", "ray.io/group=retrieval")[0])
    assert retrieval["resources"]["limits"] == {"cpu": "2", "memory": "12Gi"}


def test_what_a_deleted_cluster_left_in_redis_can_be_removed(plane: ControlPlane) -> None:
    """Last of all. Without that pod (refused by Pod Security, say) the cluster would stay, half deleted."""
    plane.kubectl("delete", "raycluster/interactive", "-n", NAMESPACE, "--wait=false")

    labels = "ray.io/cluster=interactive,ray.io/node-type=redis-cleanup"
    (pod,) = pods_of(plane, labels, 1)
    container = ray_container(pod)
    assert container["image"] == "remembrandt:0.1.0"
    assert secret_of(container, "REDIS_PASSWORD") == ("remembrandt-redis", "password")
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "interactive", "or the network keeps it in"
