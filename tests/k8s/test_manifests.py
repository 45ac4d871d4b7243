"""The manifests as kustomize renders them: known to their schemas, and free of what the API server takes in silence."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from remembrandt.configuration import load_config
from remembrandt.databases.planning import Rates, Workload, plan_capacity
from remembrandt.databases.vectors import VectorConfig
from tests.support.manifest_rules import IN_IMAGE, cluster_spec, containers, problems
from tests.support.manifests import K8S, REPOSITORY, Document, compose, pods, render, roots, schema_problems

RATES = Rates(
    hardware="any: memory and disk do not depend on speed",
    measured_at="",
    decode_per_second=1,
    row_bytes_per_second=1,
    read_bytes_per_second=1,
    flops=1,
    code_values_per_second={"Flat": 1, "SQfp16": 1, "SQ8": 1, "PQ": 1},
    graph_values_per_second=1,
    pq_pairs_per_second=1,
    scan_bytes_per_second=1,
    documents_per_second=1,
    document_bytes=110.6,  # as it is measured, anywhere: it follows from the text
    encoders={},
)


def name_of(root: Path) -> str:
    return str(root.relative_to(K8S))


def objections(documents: list[Document]) -> list[str]:
    return [
        f"{document['kind']} {document['metadata']['name']}: {problem}"
        for document in documents
        for problem in [*schema_problems(document), *problems(document)]
    ]


def one(documents: list[Document], kind: str, name: str | None = None) -> Document:
    found = [d for d in documents if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("root", roots(), ids=name_of)
def test_what_is_applied_is_in_order(root: Path) -> None:
    documents = render(root)

    assert documents
    assert objections(documents) == []


@pytest.mark.parametrize("root", [K8S / "overlays" / "gpu", *(K8S / "jobs").iterdir()], ids=name_of)
def test_optional_components_go_with_the_service_and_with_jobs(root: Path, tmp_path: Path) -> None:
    documents = compose(tmp_path, root, "elasticsearch", "monitoring")

    assert objections(documents) == []
    assert {"Elasticsearch", "PodMonitor"} <= {document["kind"] for document in documents}
    ray = next(document for document in documents if cluster_spec(document))
    nodes = [container for _, _, container in containers(ray) if container["name"] in ("ray-head", "ray-worker")]
    assert all("ELASTICSEARCH_URL" in {entry["name"] for entry in node["env"]} for node in nodes)


@pytest.mark.parametrize("root", roots(), ids=name_of)
def test_only_components_need_more_than_kubernetes_and_kuberay(root: Path) -> None:
    groups = {document["apiVersion"].rpartition("/")[0] for document in render(root)}

    assert groups <= {"", "apps", "networking.k8s.io", "policy", "ray.io"}


def labels_of(document: Document) -> list[dict[str, str]]:
    """Of the pods that come of it: the template's, and what KubeRay adds."""
    found = []
    for path, pod in pods(document):
        labels = dict(pod.get("metadata", {}).get("labels", {}))
        spec = cluster_spec(document)
        if spec and "headGroupSpec" in path:
            labels |= {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head", "ray.io/group": "headgroup"}
        elif spec and "workerGroupSpecs" in path:
            number = int(re.search(r"workerGroupSpecs\[(\d+)\]", path).group(1))
            group = spec["workerGroupSpecs"][number]["groupName"]
            labels |= {"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker", "ray.io/group": group}
        found.append(labels)
    return found


def selects(selector: Document, labels: dict[str, str]) -> bool:
    exact = selector.get("matchLabels", {}).items() <= labels.items()
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return exact and all(labels.get(expression["key"]) in expression["values"] for expression in expressions)


def test_budgets_policies_and_services_select_pods_that_exist(tmp_path: Path) -> None:
    everything = [document for root in roots() for document in render(root)]
    everything += compose(tmp_path, K8S / "overlays" / "gpu", "elasticsearch", "monitoring")
    labels = [labels for document in everything for labels in labels_of(document)]
    selectors = {
        f"{document['kind']} {document['metadata']['name']}": selector
        for document in everything
        for selector in [document.get("spec", {}).get("podSelector", document.get("spec", {}).get("selector"))]
        if document["kind"] in ("NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "Service")
        and selector is not None
    }
    plain = {name: {"matchLabels": s} if name.startswith("Service") else s for name, s in selectors.items()}

    assert len(selectors) > 15
    assert [name for name, selector in plain.items() if not any(selects(selector, pod) for pod in labels)] == []


def test_every_pod_is_cut_off_by_default_and_every_ray_pod_may_talk_to_its_own() -> None:
    documents = render(K8S / "base")
    deny = one(documents, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}

    rays = [labels for root in roots() for d in render(root) if cluster_spec(d) for labels in labels_of(d)]
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    for labels in rays:
        mine = [policy for policy in policies if selects(policy["podSelector"], labels)]
        sources = [peer for policy in mine for rule in policy.get("ingress", []) for peer in rule.get("from", [])]
        assert any(selects(peer["podSelector"], labels) for peer in sources if "namespaceSelector" not in peer)
        assert any("egress" in policy and len(policy["egress"]) > 1 for policy in mine)


def test_retrieval_pods_ask_for_what_the_planner_says() -> None:
    service = cluster_spec(one(render(K8S / "base"), "RayService"))
    group = next(group for group in service["workerGroupSpecs"] if group["groupName"] == "retrieval")
    plan = plan_capacity(
        Workload(rows=10_000_000, dim=512, actors=group["replicas"]), VectorConfig(memory_budget="16GB"), RATES
    )

    assert plan.fits
    pod = group["template"]["spec"]
    claim = pod["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert pod["containers"][0]["resources"]["requests"] == {"cpu": plan.pod.cpu, "memory": plan.pod.memory}
    assert claim["resources"]["requests"]["storage"] == plan.pod.cache


def test_small_retrieval_pods_ask_for_what_the_planner_says() -> None:
    service = cluster_spec(one(render(K8S / "overlays" / "dev"), "RayService"))
    group = next(group for group in service["workerGroupSpecs"] if group["groupName"] == "retrieval")
    plan = plan_capacity(Workload(rows=20_000, dim=256), VectorConfig(memory_budget="1GB"), RATES)

    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] == plan.pod.memory


def serve_config(root: Path) -> Document:
    return yaml.safe_load(one(render(root), "RayService")["spec"]["serveConfigV2"])


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_an_overlay_changes_how_much_is_served_and_not_what(overlay: str) -> None:
    base, changed = serve_config(K8S / "base"), serve_config(K8S / "overlays" / overlay)

    scale = ("num_replicas", "autoscaling_config", "ray_actor_options")
    for config in (base, changed):
        for deployment in config["applications"][0]["deployments"]:
            for key in scale:
                deployment.pop(key, None)
    assert changed == base


def test_the_application_is_the_one_that_clients_know() -> None:
    (application,) = serve_config(K8S / "base")["applications"]

    assert (application["name"], application["route_prefix"]) == ("remembrandt", "/")
    assert "accounts" not in application["args"]
    samplers = {f"Sampler-{model}" for model in application["args"]["models"]}
    assert {deployment["name"] for deployment in application["deployments"]} == {"Ingress", "Retrieval", *samplers}


def test_samplers_run_on_gpus_in_the_gpu_overlay() -> None:
    service = one(render(K8S / "overlays" / "gpu"), "RayService")
    samplers = cluster_spec(service)["workerGroupSpecs"][0]
    deployments = serve_config(K8S / "overlays" / "gpu")["applications"][0]["deployments"]

    assert samplers["groupName"] == "samplers"
    container = samplers["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"].endswith("-gpu")
    options = {deployment["name"]: deployment["ray_actor_options"] for deployment in deployments}
    assert options["Sampler-rdm-small"]["num_gpus"] == 1
    assert "num_gpus" not in options["Retrieval"]


def test_rays_autoscaler_reads_the_groups_as_they_are_meant() -> None:
    service = one(render(K8S / "overlays" / "gpu"), "RayService")
    cluster = {"metadata": {"name": "any", "namespace": "remembrandt"}, "spec": cluster_spec(service)}

    kinds = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]

    gibibyte = 2**30
    assert {name: kind["resources"] for name, kind in kinds.items()} == {
        "headgroup": {"CPU": 0, "memory": 8 * gibibyte},
        "samplers": {"CPU": 8, "GPU": 1, "memory": 64 * gibibyte, "sampler": 1},
        "retrieval": {"CPU": 2, "memory": 12 * gibibyte, "retrieval": 1},
    }


def test_a_registry_of_ones_own_takes_one_line(tmp_path: Path) -> None:
    overlay, other = tmp_path / "overlay", tmp_path / "registry"
    overlay.mkdir()
    other.mkdir()
    compose(overlay, K8S / "overlays" / "gpu")
    content = {
        "resources": ["../overlay"],
        "images": [{"name": "remembrandt", "newName": "registry.example/remembrandt"}],
    }
    (other / "kustomization.yaml").write_text(json.dumps(content))

    images = [c["image"] for d in render(other) if d["kind"] == "RayService" for _, _, c in containers(d)]

    assert sorted(set(images)) == ["registry.example/remembrandt:0.1.0", "registry.example/remembrandt:0.1.0-gpu"]


def overlays_of(job: str) -> list[Path]:
    return [root for root in roots() if root.name == job]


@pytest.mark.parametrize("root", overlays_of("build-index"), ids=name_of)
def test_the_building_job_has_a_configuration_that_it_takes(root: Path) -> None:
    from remembrandt.databases.config import BuildConfig

    words = shlex.split(one(render(root), "RayJob")["spec"]["entrypoint"])
    file = REPOSITORY / words[words.index("--config") + 1].removeprefix(IN_IMAGE)
    config = load_config(BuildConfig, str(file), [word for word in words if "=" in word])

    assert config.uri.startswith("s3://")


@pytest.mark.parametrize("root", overlays_of("train-reimagen"), ids=name_of)
def test_the_training_job_has_a_configuration_that_it_takes(root: Path) -> None:
    from remembrandt.training.reimagen import TrainReimagenConfig

    job = one(render(root), "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    file = REPOSITORY / words[words.index("--config") + 1].removeprefix(IN_IMAGE)
    config = load_config(TrainReimagenConfig, str(file), [word for word in words if "=" in word])

    loop = config.stages[int(words[words.index("--stage") + 1])].loop
    trainers = cluster_spec(job)["workerGroupSpecs"][0]
    limits = trainers["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus = trainers["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    assert loop.workers <= gpus if loop.gpu else loop.workers <= trainers["maxReplicas"] * int(limits["cpu"])
    for uri in (config.storage, config.output, config.cache, config.train_set.uri):
        assert uri.startswith("s3://")


def test_the_readme_names_every_secret_and_how_to_make_it() -> None:
    readme = (K8S / "README.md").read_text()
    wanted = {
        (name, key)
        for root in roots()
        for document in render(root)
        for name, key in re.findall(r"'secretKeyRef': \{'key': '([^']+)', 'name': '([^']+)'\}", str(document))
    }

    assert wanted
    for key, name in wanted:
        commands = re.findall(rf"create secret generic {name} (.*?)(?=\nkubectl|\n```)", readme, re.DOTALL)
        assert any(f"--from-literal={key}=" in command for command in commands), (name, key)
