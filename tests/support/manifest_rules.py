"""What the API server takes in silence and must not stand in our manifests: each rule gives the problems that it finds.

Some of it KubeRay refuses later, in an event that nobody reads; some shows when a pod starts, or when it is evicted.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import yaml
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from tests.support.manifests import REPOSITORY, Document, pods

NAME_LIMITS = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
CLUSTER_SPECS = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
IN_IMAGE = "/app/"
"""Where cluster/Dockerfile puts the repository's jobs and services."""
SECRET_NAMES = re.compile(r"PASSWORD|SECRET|TOKEN|_KEY|ACCOUNTS|CREDENTIAL|REDISCLI_AUTH")
CLUSTER_SCOPED = {"Namespace"}

_SUFFIXES = {"": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SUFFIXES |= {f"{letter}i": 1024 ** (power + 1) for power, letter in enumerate("KMGT")}


def quantity(text: Any) -> Decimal:
    """A Kubernetes quantity as a number."""
    number, suffix = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text)).groups()
    return Decimal(number) * _SUFFIXES[suffix]


def cluster_spec(document: Document) -> Document | None:
    """The part of a Ray resource that describes a RayCluster; None for other kinds."""
    if document["kind"] not in CLUSTER_SPECS:
        return None
    spec = document["spec"]
    for key in CLUSTER_SPECS[document["kind"]]:
        spec = spec[key]
    return spec


def containers(document: Document) -> Iterator[tuple[str, Document, Document]]:
    """Where it stands, the pod template, and the container, for every container within."""
    for path, pod in pods(document):
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            yield f"{path}.{container['name']}", pod, container


def names_fit(document: Document) -> Iterator[str]:
    name, kind = document["metadata"]["name"], document["kind"]
    if len(name) > NAME_LIMITS.get(kind, 63):
        yield f"name {name} is longer than the {NAME_LIMITS.get(kind, 63)} characters of a {kind}"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"name {name} is not a DNS label"


def namespaces_are_given(document: Document) -> Iterator[str]:
    if document["kind"] not in CLUSTER_SCOPED and not document["metadata"].get("namespace"):
        yield "no namespace: it would land wherever kubectl points"


def replicas_are_in_order(document: Document) -> Iterator[str]:
    for group in (cluster_spec(document) or {}).get("workerGroupSpecs", []):
        least, now, most = (group.get(key) for key in ("minReplicas", "replicas", "maxReplicas"))
        if None in (least, now, most) or not 0 <= least <= now <= most:
            yield f"group {group['groupName']}: 0 ≤ minReplicas {least} ≤ replicas {now} ≤ maxReplicas {most} is not so"


def requests_are_within_limits(document: Document) -> Iterator[str]:
    for path, _, container in containers(document):
        resources = container.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        if "cpu" not in requests or "memory" not in requests:
            yield f"{path}: no request of cpu or memory"
        if "memory" not in limits:
            yield f"{path}: no limit of memory"
        for name, asked in requests.items():
            if name in limits and quantity(asked) > quantity(limits[name]):
                yield f"{path}: request {name} {asked} is more than its limit {limits[name]}"
        if container["name"].startswith("ray-") and requests.get("memory") != limits.get("memory"):
            yield f"{path}: Ray counts on its limit of memory, so that must be requested"


def resources_are_set_once(document: Document) -> Iterator[str]:
    spec = cluster_spec(document) or {}
    for group in [spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", [])]:
        twice = {"num-cpus", "num-gpus", "memory", "resources"} & group.get("rayStartParams", {}).keys()
        if twice and group.get("resources"):
            yield f"group {group.get('groupName', 'head')}: resources excludes rayStartParams {sorted(twice)}"


def mounts_have_volumes(document: Document) -> Iterator[str]:
    claims = document["spec"].get("volumeClaimTemplates", []) if isinstance(document.get("spec"), dict) else []
    for path, pod, container in containers(document):
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in claims}
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{path}: no volume {mount['name']}"


def images_are_pinned(document: Document) -> Iterator[str]:
    for path, _, container in containers(document):
        image = container.get("image")
        if image is None and document["kind"] == "Elasticsearch":
            continue  # ECK takes the image of `version`
        tag = str(image).rpartition("/")[2].partition(":")[2]
        if not tag or tag == "latest":
            yield f"{path}: image {image} has no fixed tag"


def secrets_come_by_reference(document: Document) -> Iterator[str]:
    if document["kind"] == "Secret":
        yield "a Secret must not be committed"
    for path, _, container in containers(document):
        for entry in container.get("env", []):
            if SECRET_NAMES.search(entry["name"]) and "secretKeyRef" not in entry.get("valueFrom", {}):
                yield f"{path}: {entry['name']} must come from a Secret"
    if re.search(r"://[^/\s:@]+:[^/\s@]+@", yaml.safe_dump(document, width=10**6)):
        yield "an address with a password in it"
    password = ((cluster_spec(document) or {}).get("gcsFaultToleranceOptions") or {}).get("redisPassword", {})
    if "value" in password:
        yield "redisPassword must come from a Secret"


def pods_are_restricted(document: Document) -> Iterator[str]:
    """Pod Security's level `restricted`, which the namespace enforces; refused pods show in events alone."""
    for path, pod in pods(document):
        context = pod["spec"].get("securityContext", {})
        if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
            yield f"{path}: may run as root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{path}: no seccomp profile"
    for path, _, container in containers(document):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{path}: keeps privileges"


def servers_are_probed(document: Document) -> Iterator[str]:
    """KubeRay and ECK bring probes for their own pods."""
    if document["kind"] == "StatefulSet":
        for path, _, container in containers(document):
            if "readinessProbe" not in container:
                yield f"{path}: no readinessProbe"


def clusters_scale_and_ask_for_a_token(document: Document) -> Iterator[str]:
    spec = cluster_spec(document)
    if spec is None:
        return
    if spec.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode is not token: whoever reaches the dashboard can run code"
    if not spec.get("enableInTreeAutoscaling") or spec.get("autoscalerOptions", {}).get("version") != "v2":
        yield "not scaled by autoscaler v2"
    if spec["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "the head takes work"
    for group in spec.get("workerGroupSpecs", []):
        if group["template"]["spec"].get("restartPolicy") != "Never":
            yield f"group {group['groupName']}: restartPolicy must be Never with autoscaler v2"
    lock = (REPOSITORY / "requirements.lock").read_text()
    locked = re.search(r"^ray==(\S+)", lock, re.MULTILINE).group(1)
    if str(spec.get("rayVersion")) != locked:
        yield f"rayVersion {spec.get('rayVersion')} is not the {locked} of requirements.lock"


def budgets_are_whole_numbers(document: Document) -> Iterator[str]:
    if document["kind"] == "PodDisruptionBudget":
        least = document["spec"].get("minAvailable")
        if not isinstance(least, int) or isinstance(least, bool) or "maxUnavailable" in document["spec"]:
            yield "for pods of a custom resource only a whole minAvailable counts"


def jobs_name_files(document: Document) -> Iterator[str]:
    if document["kind"] != "RayJob":
        return
    words = shlex.split(document["spec"]["entrypoint"])
    files = [word for word in words if word.startswith(("/", "jobs/"))]
    if len(files) != 2:
        yield f"entrypoint {words} should name a job and its configuration"
    for name in files:
        if not name.startswith(IN_IMAGE) or not (REPOSITORY / name.removeprefix(IN_IMAGE)).is_file():
            yield f"entrypoint: {name} is not in the image"


def serve_config_is_understood(document: Document) -> Iterator[str]:
    """Serve drops unknown keys in silence, and KubeRay reports broken YAML in an event alone."""
    if document["kind"] != "RayService":
        return
    try:
        config = yaml.safe_load(document["spec"]["serveConfigV2"])
    except yaml.YAMLError as error:
        yield f"serveConfigV2 is not YAML: {error}"
        return
    if not isinstance(config, dict) or not config.get("applications"):
        yield "serveConfigV2 names no application"
        return
    yield from _unknown(config, ServeDeploySchema, "serveConfigV2")
    yield from _unknown(config.get("http_options", {}), HTTPOptionsSchema, "http_options")
    groups = cluster_spec(document)["workerGroupSpecs"]
    for application in config["applications"]:
        yield from _unknown(application, ServeApplicationSchema, application["name"])
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*", application.get("import_path", "")):
            yield f"import_path {application.get('import_path')} names no attribute of a module"
        for deployment in application.get("deployments", []):
            yield from _deployment(deployment, groups)
    if not any(True for _ in _unknown(config, ServeDeploySchema, "")):
        try:
            ServeDeploySchema.model_validate(config)
        except ValueError as error:
            yield f"serveConfigV2: {' '.join(str(error).split())[:300]}"


def _deployment(deployment: Document, groups: list[Document]) -> Iterator[str]:
    name, options = deployment["name"], deployment.get("ray_actor_options", {})
    yield from _unknown(deployment, DeploymentSchema, name)
    yield from _unknown(options, RayActorOptionsSchema, name)
    if "num_replicas" in deployment and "autoscaling_config" in deployment:
        yield f"{name}: num_replicas and autoscaling_config exclude each other"
    offers = [group for group in groups if _fits(options, group)]
    if not offers:
        yield f"{name}: no worker group can hold a replica of {options}"
    scaling = deployment.get("autoscaling_config", {})
    most = scaling.get("max_replicas", deployment.get("num_replicas", 1))
    if "max_replicas_per_node" in deployment and offers:
        nodes = max(group["maxReplicas"] for group in offers)
        if most > nodes * deployment["max_replicas_per_node"]:
            yield f"{name}: {most} replicas do not fit {nodes} nodes"


def _fits(options: Document, group: Document) -> bool:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return (
        options.get("num_cpus", 1) <= quantity(limits["cpu"])
        and options.get("num_gpus", 0) <= quantity(limits.get("nvidia.com/gpu", 0))
        and all(
            need <= quantity(group.get("resources", {}).get(name, 0))
            for name, need in options.get("resources", {}).items()
        )
    )


def _unknown(mapping: Document, schema: Any, where: str) -> Iterator[str]:
    for key in mapping.keys() - schema.model_fields.keys():
        yield f"{where}: Serve knows no {key}"


RULES: tuple[Callable[[Document], Iterator[str]], ...] = (
    names_fit,
    namespaces_are_given,
    replicas_are_in_order,
    requests_are_within_limits,
    resources_are_set_once,
    mounts_have_volumes,
    images_are_pinned,
    secrets_come_by_reference,
    pods_are_restricted,
    servers_are_probed,
    clusters_scale_and_ask_for_a_token,
    budgets_are_whole_numbers,
    jobs_name_files,
    serve_config_is_understood,
)


def problems(document: Document) -> list[str]:
    """All that any rule finds."""
    return [problem for rule in RULES for problem in rule(document)]
