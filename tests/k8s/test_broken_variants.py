"""Each check of the manifests can fail: one mistake at a time, made in the manifests that we ship."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.manifest_rules import cluster_spec, problems
from tests.support.manifests import K8S, Document, render, schema_problems

SERVICE, JOB, CLUSTER = K8S / "base", K8S / "jobs" / "build-index", K8S / "interactive"


def document(root: Path, kind: str, name: str | None = None) -> Document:
    found = (d for d in render(root) if d["kind"] == kind and name in (None, d["metadata"]["name"]))
    return copy.deepcopy(next(found))


def service() -> Document:
    return document(SERVICE, "RayService")


def job() -> Document:
    return document(JOB, "RayJob")


def cluster() -> Document:
    return document(CLUSTER, "RayCluster")


def budget() -> Document:
    return document(SERVICE, "PodDisruptionBudget", "retrieval")


def policy() -> Document:
    return document(SERVICE, "NetworkPolicy", "clients")


def redis() -> Document:
    return document(SERVICE, "StatefulSet", "redis")


def head(d: Document) -> Document:
    return cluster_spec(d)["headGroupSpec"]["template"]["spec"]["containers"][0]


def worker(d: Document) -> Document:
    return cluster_spec(d)["workerGroupSpecs"][0]


def replace_in_serve_config(old: str, new: str) -> Callable[[Document], None]:
    def change(d: Document) -> None:
        assert old in d["spec"]["serveConfigV2"]
        d["spec"]["serveConfigV2"] = d["spec"]["serveConfigV2"].replace(old, new, 1)

    return change


SCHEMA = [
    (cluster, lambda d: d["spec"].update(enableInTreeAutoScaling=True), "'enableInTreeAutoScaling' was unexpected"),
    (service, lambda d: cluster_spec(d).update(gcsFaultTolerance={}), "'gcsFaultTolerance' was unexpected"),
    (job, lambda d: d["spec"].update(rayClusterConfig={}), "'rayClusterConfig' was unexpected"),
    (cluster, lambda d: d["spec"]["autoscalerOptions"].update(upscalingMode="Slow"), "'Slow' is not one of"),
    (cluster, lambda d: d["spec"]["authOptions"].update(mode="password"), "'password' is not one of"),
    (cluster, lambda d: worker(d).update(maxReplicas="4"), "'4' is not of type 'integer'"),
    (cluster, lambda d: head(d)["resources"]["limits"].update(memory="8GiB"), "not valid under any of"),
    (cluster, lambda d: head(d).update(volumeMount=[]), "'volumeMount' was unexpected"),
    (cluster, lambda d: d["metadata"].update(label={}), "'label' was unexpected"),
    (cluster, lambda d: d["spec"].pop("headGroupSpec"), "'headGroupSpec' is a required property"),
    (policy, lambda d: d["spec"]["ingress"][0].update(port=8000), "'port' was unexpected"),
    (policy, lambda d: d["spec"].update(podSelector=[]), "[] is not of type 'object'"),
    (budget, lambda d: d["spec"].update(minimum=1), "'minimum' was unexpected"),
    (
        redis,
        lambda d: d["spec"]["template"]["spec"]["containers"][0].update(readyProbe={}),
        "'readyProbe' was unexpected",
    ),
    (redis, lambda d: d["spec"].update(replicas="1"), "'1' is not of type 'integer'"),
    (
        redis,
        lambda d: d["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"].update(memory="512MiB"),
        "'512MiB' does not match",
    ),
    (redis, lambda d: d.update(kind="Deployment"), "Deployment apps/v1 has no schema"),
]

RULES = [
    (cluster, lambda d: d["metadata"].update(name="a" * 54), "longer than the 53 characters of a RayCluster"),
    (job, lambda d: d["metadata"].update(name="a" * 48), "longer than the 47 characters of a RayJob"),
    (service, lambda d: d["metadata"].update(name="Remembrandt"), "is not a DNS label"),
    (service, lambda d: d["metadata"].pop("namespace"), "no namespace"),
    (cluster, lambda d: worker(d).update(minReplicas=9), "is not so"),
    (cluster, lambda d: worker(d).pop("maxReplicas"), "is not so"),
    (
        cluster,
        lambda d: head(d)["resources"]["requests"].update(cpu="2500m"),
        "request cpu 2500m is more than its limit 2",
    ),
    (cluster, lambda d: head(d)["resources"]["requests"].update(memory="4Gi"), "that must be requested"),
    (cluster, lambda d: head(d).pop("resources"), "no request of cpu or memory"),
    (redis, lambda d: d["spec"]["template"]["spec"]["containers"][0]["resources"].pop("limits"), "no limit of memory"),
    (service, lambda d: worker(d)["rayStartParams"].update({"num-cpus": "4"}), "resources excludes rayStartParams"),
    (cluster, lambda d: head(d)["volumeMounts"].append({"name": "data", "mountPath": "/d"}), "no volume data"),
    (redis, lambda d: d["spec"].pop("volumeClaimTemplates"), "no volume data"),
    (cluster, lambda d: head(d).update(image="remembrandt"), "has no fixed tag"),
    (cluster, lambda d: head(d).update(image="registry.example:5000/remembrandt"), "has no fixed tag"),
    (job, lambda d: head(d).update(image="remembrandt:latest"), "has no fixed tag"),
    (cluster, lambda d: d.update(kind="Secret"), "a Secret must not be committed"),
    (
        cluster,
        lambda d: head(d)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}),
        "AWS_SECRET_ACCESS_KEY must come from a Secret",
    ),
    (
        service,
        lambda d: head(d)["env"].append({"name": "X", "value": "postgresql+psycopg://me:secret@db/accounts"}),
        "an address with a password in it",
    ),
    (
        service,
        replace_in_serve_config("storage:", "accounts: postgresql+psycopg://me:secret@db/accounts\n    storage:"),
        "an address with a password in it",
    ),
    (
        service,
        lambda d: cluster_spec(d)["gcsFaultToleranceOptions"].update(redisPassword={"value": "abc"}),
        "redisPassword must come from a Secret",
    ),
    (cluster, lambda d: worker(d)["template"]["spec"].pop("securityContext"), "may run as root"),
    (cluster, lambda d: worker(d)["template"]["spec"]["securityContext"].pop("seccompProfile"), "no seccomp profile"),
    (cluster, lambda d: head(d).pop("securityContext"), "keeps privileges"),
    (redis, lambda d: d["spec"]["template"]["spec"]["containers"][0].pop("readinessProbe"), "no readinessProbe"),
    (cluster, lambda d: d["spec"].pop("authOptions"), "authOptions.mode is not token"),
    (cluster, lambda d: d["spec"]["autoscalerOptions"].update(version="v1"), "not scaled by autoscaler v2"),
    (service, lambda d: cluster_spec(d).pop("enableInTreeAutoscaling"), "not scaled by autoscaler v2"),
    (cluster, lambda d: d["spec"]["headGroupSpec"]["rayStartParams"].clear(), "the head takes work"),
    (job, lambda d: worker(d)["template"]["spec"].update(restartPolicy="Always"), "restartPolicy must be Never"),
    (job, lambda d: cluster_spec(d).update(rayVersion="2.9.0"), "rayVersion 2.9.0 is not the"),
    (budget, lambda d: d["spec"].update(minAvailable="50%"), "only a whole minAvailable counts"),
    (
        budget,
        lambda d: d.update(spec={"maxUnavailable": 1, "selector": d["spec"]["selector"]}),
        "only a whole minAvailable counts",
    ),
    (
        job,
        lambda d: d["spec"].update(entrypoint="python /app/jobs/build_index.py"),
        "should name a job and its configuration",
    ),
    (
        job,
        lambda d: d["spec"].update(entrypoint=d["spec"]["entrypoint"].replace("emoji.yaml", "emojis.yaml")),
        "emojis.yaml is not in the image",
    ),
    (job, lambda d: d["spec"].update(entrypoint=d["spec"]["entrypoint"].replace("/app/", "")), "is not in the image"),
    (service, lambda d: d["spec"].update(serveConfigV2="applications: ["), "serveConfigV2 is not YAML"),
    (service, lambda d: d["spec"].update(serveConfigV2="application: []"), "names no application"),
    (service, replace_in_serve_config("services.app:build", "services/app.py"), "names no attribute of a module"),
    (service, replace_in_serve_config("num_replicas", "replicas"), "Serve knows no replicas"),
    (service, replace_in_serve_config("num_cpus", "cpus"), "Serve knows no cpus"),
    (service, replace_in_serve_config("proxy_location: EveryNode", "proxy_location: Everywhere"), "serveConfigV2:"),
    (
        service,
        replace_in_serve_config("autoscaling_config:", "num_replicas: 2\n    autoscaling_config:"),
        "exclude each other",
    ),
    (service, replace_in_serve_config("sampler: 0.01", "painter: 0.01"), "no worker group can hold"),
    (service, replace_in_serve_config("num_cpus: 3", "num_cpus: 5"), "no worker group can hold"),
    (service, replace_in_serve_config("max_replicas: 4", "max_replicas: 9"), "9 replicas do not fit 4 nodes"),
]


@pytest.mark.parametrize(("make", "change", "message"), SCHEMA, ids=[message for _, _, message in SCHEMA])
def test_the_schema_refuses(make: Callable[[], Document], change: Callable[[Document], object], message: str) -> None:
    broken = make()
    assert schema_problems(broken) == []

    change(broken)

    assert any(message in problem for problem in schema_problems(broken)), schema_problems(broken)


@pytest.mark.parametrize(("make", "change", "message"), RULES, ids=[message for _, _, message in RULES])
def test_the_rules_refuse(make: Callable[[], Document], change: Callable[[Document], object], message: str) -> None:
    broken = make()
    assert problems(broken) == []

    change(broken)

    assert any(message in problem for problem in problems(broken)), problems(broken)
