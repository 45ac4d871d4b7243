"""Kubernetes manifests as documents: rendered by the real kustomize, and compared with the schemas of their kinds.

The schemas (tests/assets/k8s) are those of the KubeRay release and of the Kubernetes release that `make test-k8s` runs.
The API server drops unknown fields without a word unless it is asked to be strict; here they are always an error.
"""

import functools
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.support.processes import missing

REPOSITORY = Path(__file__).parents[2]
K8S = REPOSITORY / "k8s"
ASSETS = Path(__file__).parents[1] / "assets" / "k8s"
CUSTOM = ("rayclusters", "rayjobs", "rayservices", "podmonitors")
REFERENCE = "#/definitions/"

Document = dict[str, Any]


def roots() -> list[Path]:
    """Folders below k8s/ that can be applied; components are parts of others."""
    folders = (path.parent for path in sorted(K8S.rglob("kustomization.yaml")))
    return [folder for folder in folders if "components" not in folder.relative_to(K8S).parts]


def kubectl() -> str:
    """The environment's kubectl, or else the machine's; without any the test is skipped, in CI it fails."""
    own = Path(sys.executable).with_name("kubectl")
    found = str(own) if own.exists() else shutil.which("kubectl")
    if found is None:
        missing("kubectl is missing: install the development environment")
    return found


@functools.cache
def _rendered(folder: Path) -> str:
    result = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def render(folder: Path) -> list[Document]:
    """What `kubectl apply -k` would send; the caller may change it."""
    return [document for document in yaml.safe_load_all(_rendered(folder)) if document]


def compose(folder: Path, root: Path, *components: str) -> list[Document]:
    """A root with components, as an overlay of a user's own would put them together in an empty `folder`."""
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "remembrandt",
        "resources": [os.path.relpath(root, folder)],
        "components": [os.path.relpath(K8S / "components" / name, folder) for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return render(folder)


def pods(node: Any, path: str = "") -> Iterator[tuple[str, Document]]:
    """Every pod template within, with where it stands: a mapping of `metadata` (perhaps) and `spec`."""
    if isinstance(node, dict):
        if isinstance(node.get("spec"), dict) and isinstance(node["spec"].get("containers"), list):
            yield path, node
        for key, value in node.items():
            yield from pods(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from pods(value, f"{path}[{number}]")


def schema_problems(document: Document) -> list[str]:
    """What the document's schema has to say against it; a kind without schema is a problem, too."""
    validator = _validators().get((document["apiVersion"], document["kind"]))
    if validator is None:
        return [f"{document['kind']} {document['apiVersion']} has no schema in tests/assets/k8s"]
    errors = [*validator.iter_errors(document), *_metadata().iter_errors(document.get("metadata", {}))]
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]


def load_asset(name: str) -> Any:
    """One of the vendored schema files."""
    return json.loads(gzip.decompress((ASSETS / f"{name}.json.gz").read_bytes()))


@functools.cache
def _built_in() -> dict[str, Any]:
    content = load_asset("kubernetes")
    definitions = {name: _strict(schema) for name, schema in content["definitions"].items()}
    # The published schema calls these strings; the API server takes numbers as well.
    quantity = {"type": ["string", "number"], "pattern": r"^[+-]?[0-9.]+([numkKMGTPE]i?|[eE][+-]?[0-9]+)?$"}
    definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = quantity
    definitions["io.k8s.apimachinery.pkg.util.intstr.IntOrString"] = {"type": ["string", "integer"]}
    return {"kinds": content["kinds"], "definitions": definitions}


def _of_definition(name: str) -> jsonschema.Draft4Validator:
    return jsonschema.Draft4Validator({"$ref": REFERENCE + name, "definitions": _built_in()["definitions"]})


@functools.cache
def _metadata() -> jsonschema.Draft4Validator:
    return _of_definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")


@functools.cache
def _validators() -> dict[tuple[str, str], jsonschema.Draft4Validator]:
    found = {}
    for kind, name in _built_in()["kinds"].items():
        version, _, kind_name = kind.rpartition("/")
        found[version, kind_name] = _of_definition(name)
    for name in CUSTOM:
        definition = load_asset(name)["spec"]
        for version in definition["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            api = f"{definition['group']}/{version['name']}"
            found[api, definition["names"]["kind"]] = jsonschema.Draft4Validator(schema)
    found["elasticsearch.k8s.elastic.co/v1", "Elasticsearch"] = jsonschema.Draft4Validator(_elasticsearch())
    return found


def _elasticsearch() -> dict[str, Any]:
    """The part of ECK's resource that we use, written down here: its own schema is not free to be passed on."""
    definitions = json.loads(json.dumps(_built_in()["definitions"]))
    # ECK fills in the container's image, ports and probes.
    definitions["io.k8s.api.core.v1.Container"]["required"] = ["name"]
    claim = {
        "type": "object",
        "required": ["metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "metadata": {"type": "object", "required": ["name"]},
            "spec": {"$ref": REFERENCE + "io.k8s.api.core.v1.PersistentVolumeClaimSpec"},
        },
    }
    node_set = {
        "type": "object",
        "required": ["name", "count"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "maxLength": 23},
            "count": {"type": "integer", "minimum": 1},
            "config": {"type": "object"},
            "podTemplate": {"$ref": REFERENCE + "io.k8s.api.core.v1.PodTemplateSpec"},
            "volumeClaimTemplates": {"type": "array", "items": claim},
        },
    }
    spec = {
        "type": "object",
        "required": ["version", "nodeSets"],
        "additionalProperties": False,
        "properties": {"version": {"type": "string"}, "nodeSets": {"type": "array", "minItems": 1, "items": node_set}},
    }
    return {
        "type": "object",
        "required": ["spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
        },
        "definitions": definitions,
    }


def _strict(schema: Any) -> Any:
    """Kubernetes' dialect as JSON schema in which a field that is not named is an error."""
    if not isinstance(schema, dict):
        return schema
    schema = dict(schema)
    if schema.pop("x-kubernetes-int-or-string", False):
        # The pattern is meant for the string alone.
        pattern = {"pattern": schema.pop("pattern")} if "pattern" in schema else {}
        schema.pop("type", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string", **pattern}]
    if "properties" in schema:
        schema["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
    for key in {"items", "additionalProperties"} & schema.keys():
        schema[key] = _strict(schema[key])
    if schema.pop("nullable", False) and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    named = schema.get("properties") and "additionalProperties" not in schema
    if named and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema["additionalProperties"] = False
    return schema
