"""Writes tests/assets/k8s anew from the Go modules that kit/go.mod names: what `make test` validates manifests against.

python tests/k8s/kit/vendor_schemas.py KUBERAY_DIR KUBERNETES_DIR PROMETHEUS_OPERATOR_DIR

The folders are those of the modules (`go list -m -f '{{.Dir}}' …`). Descriptions, most of the bytes, are left out.
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

ASSETS = Path(__file__).parents[2] / "assets" / "k8s"
KINDS = (
    ("", "v1", "Namespace"),
    ("", "v1", "PersistentVolumeClaim"),
    ("", "v1", "Service"),
    ("apps", "v1", "StatefulSet"),
    ("networking.k8s.io", "v1", "NetworkPolicy"),
    ("policy", "v1", "PodDisruptionBudget"),
)
DEFINITIONS = ("io.k8s.api.core.v1.PodTemplateSpec", "io.k8s.api.core.v1.PersistentVolumeClaimSpec")
"""Wanted by themselves: parts of custom resources that we have no schema of."""
REFERENCE = "#/definitions/"


def without_descriptions(node: Any) -> Any:
    """The same without what only people read. A property may be called `description`: its schema is a mapping."""
    if isinstance(node, dict):
        return {
            key: without_descriptions(value)
            for key, value in node.items()
            if not (key == "description" and isinstance(value, str))
        }
    return [without_descriptions(value) for value in node] if isinstance(node, list) else node


def references(node: Any) -> set[str]:
    """Names of the definitions that a schema mentions."""
    if isinstance(node, dict):
        here = {node["$ref"].removeprefix(REFERENCE)} if isinstance(node.get("$ref"), str) else set()
        return here.union(*map(references, node.values()))
    return set[str]().union(*map(references, node)) if isinstance(node, list) else set()


def built_in(swagger: dict[str, Any]) -> dict[str, Any]:
    """The definitions of `KINDS` and of all that they are made of, and which kind is which."""
    definitions = swagger["definitions"]
    kinds = {
        f"{group}/{version}/{kind}".removeprefix("/"): name
        for name, schema in definitions.items()
        for entry in schema.get("x-kubernetes-group-version-kind", [])
        for group, version, kind in [(entry["group"], entry["version"], entry["kind"])]
        if (group, version, kind) in KINDS
    }
    assert len(kinds) == len(KINDS)
    wanted, found = {*kinds.values(), *DEFINITIONS}, set[str]()
    while wanted:
        found |= wanted
        wanted = set[str]().union(*(references(definitions[name]) for name in wanted)) - found
    return {"kinds": kinds, "definitions": {name: without_descriptions(definitions[name]) for name in sorted(found)}}


def write(name: str, content: Any) -> None:
    """Compressed, and the same bytes for the same content."""
    data = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    (ASSETS / f"{name}.json.gz").write_bytes(gzip.compress(data, mtime=0))


def main() -> None:
    kuberay, kubernetes, prometheus = map(Path, sys.argv[1:])
    ASSETS.mkdir(parents=True, exist_ok=True)
    for name in ("rayclusters", "rayjobs", "rayservices"):
        path = kuberay / "config" / "crd" / "bases" / f"ray.io_{name}.yaml"
        write(name, without_descriptions(yaml.safe_load(path.read_text())))
    monitors = prometheus / "example" / "prometheus-operator-crd" / "monitoring.coreos.com_podmonitors.yaml"
    write("podmonitors", without_descriptions(yaml.safe_load(monitors.read_text())))
    write("kubernetes", built_in(json.loads((kubernetes / "api" / "openapi-spec" / "swagger.json").read_text())))


if __name__ == "__main__":
    main()
