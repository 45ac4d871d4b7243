"""cluster/Dockerfile, as far as it can be known unbuilt: locked, unprivileged, and as the manifests expect."""

import re
import shlex

import pytest

from tests.support.manifest_rules import IN_IMAGE
from tests.support.manifests import REPOSITORY

DOCKERFILE = REPOSITORY / "cluster" / "Dockerfile"
IGNORED_BUT = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]


def instructions() -> list[tuple[str, str]]:
    """(word, arguments), continued lines joined, comments dropped."""
    text = "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.partition(" ")[0], " ".join(line.partition(" ")[2].split())) for line in lines if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for word, arguments in instructions():
        if word == "FROM":
            found[arguments.split(" AS ")[1]] = []
        list(found.values())[-1].append((word, arguments))
    return found


def with_parents(name: str) -> list[tuple[str, str]]:
    """A stage after those that it is built from."""
    base = stages()[name][0][1].split(" AS ")[0]
    return [*(with_parents(base) if base in stages() else []), *stages()[name]]


def lock(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (REPOSITORY / name).read_text(), re.MULTILINE))


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_runs_as_nobody_in_particular_where_the_manifests_look(target: str) -> None:
    steps = dict(with_parents(target))

    assert steps["USER"] == "1000:1000"
    assert steps["WORKDIR"] + "/" == IN_IMAGE
    assert "PYTHONPATH=/app" in dict(with_parents(target))["ENV"]


def test_base_images_have_a_tag() -> None:
    bases = [arguments.split(" AS ")[0] for word, arguments in instructions() if word == "FROM"]

    for base in bases:
        assert base in stages() or re.fullmatch(r"[a-z]+:\d[\w.-]*", base)


def test_all_that_is_copied_is_let_through() -> None:
    for word, arguments in instructions():
        if word == "COPY" and "--from" not in arguments:
            for source in shlex.split(arguments)[:-1]:
                assert source in IGNORED_BUT, f"{source}: .dockerignore keeps it out"


def test_everything_is_installed_from_locks_with_hashes() -> None:
    commands = [c.strip() for word, a in instructions() if word == "RUN" for c in a.split("&&")]
    installs = [c for c in commands if re.search(r"\b(pip install|pip sync)\b", c)]

    assert len(installs) == 4
    for command in installs:
        assert "--require-hashes" in command or command.endswith("dist/*.whl")
    for name in ("requirements.lock", "cluster/build.lock", "cluster/faiss-gpu.lock"):
        text = (REPOSITORY / name).read_text()
        assert text.count("--hash=sha256:") >= len(lock(name)) > 0
        assert "http" not in text.partition("\n")[0]


def test_both_targets_search_with_the_same_faiss() -> None:
    assert lock("cluster/faiss-gpu.lock")["faiss-gpu"] == lock("requirements.lock")["faiss-cpu"]


def test_the_image_is_made_by_the_same_uv_as_the_environment() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()

    assert lock("cluster/build.lock")["uv"] == re.search(r"^UV_VERSION := (\S+)", makefile, re.MULTILINE).group(1)


def test_what_kuberays_probes_call_is_there() -> None:
    assert any("wget" in arguments for word, arguments in stages()["node"] if word == "RUN")
