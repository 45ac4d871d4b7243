"""A mistake in a configuration is one line that names the key, the place and the remedy."""

import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from remembrandt.configuration import Config, dump_config, load_config
from remembrandt.entry import run_job
from remembrandt.errors import ConfigError
from remembrandt.training.contrastive.config import TrainClipConfig
from remembrandt.training.first_stage import TrainFirstStageConfig
from remembrandt.training.rdm import TrainRdmConfig
from remembrandt.training.reimagen import TrainReimagenConfig
from tests.support.builds import REPOSITORY

CONFIGS = REPOSITORY / "jobs" / "configs"


class Square(Config):
    kind: Literal["square"] = "square"
    edge: int = 1


class Circle(Config):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


class Drawing(Config):
    title: str
    pens: int = Field(1, ge=1)
    shape: Annotated[Square | Circle, Field(discriminator="kind")] = Square()
    more: tuple[Square, ...] = ()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "drawing.yaml"
    path.write_text(text)
    return path


def test_a_file_and_overrides_give_a_validated_config(tmp_path: Path) -> None:
    path = write(tmp_path, "title: a\nshape: {kind: circle, radius: 2}\n")
    config = load_config(Drawing, path, ["pens=3", "shape.radius=0.5"])
    assert config == Drawing(title="a", pens=3, shape=Circle(radius=0.5))


class Stages(Config):
    stages: dict[int, Square]


def test_an_override_reaches_a_section_whose_key_is_a_number(tmp_path: Path) -> None:
    path = write(tmp_path, "stages: {32: {edge: 2}, 64: {}}")
    assert load_config(Stages, path, ["stages.32.edge=5"]).stages == {32: Square(edge=5), 64: Square()}


def test_an_override_of_what_an_alias_names_is_of_that_place_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "stages: {32: &square {edge: 2}, 64: *square}")
    assert load_config(Stages, path, ["stages.32.edge=5"]).stages == {32: Square(edge=5), 64: Square(edge=2)}


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("train_*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_every_training_configuration_that_ships_loads(path: Path) -> None:
    kinds: dict[str, type[Config]] = {
        "train_clip": TrainClipConfig,
        "train_first_stage": TrainFirstStageConfig,
        "train_rdm": TrainRdmConfig,
        "train_reimagen": TrainReimagenConfig,
    }
    load_config(kinds[path.parent.name], path)


def test_overrides_may_stand_before_and_behind_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(tmp_path, "title: a"))
    monkeypatch.setattr("sys.argv", ["job", "pens=2", "--config", file, "title=b", "--json"])
    run_job(Drawing, lambda config, _: {"pens": config.pens, "title": config.title}, "a job")
    assert json.loads(capsys.readouterr().out) == {"pens": 2, "title": "b"}


def test_a_dumped_config_loads_again(tmp_path: Path) -> None:
    config = Drawing(title="ü", shape=Circle(radius=2))
    assert load_config(Drawing, write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: a\npen: 2", "unknown key 'pen': did you mean 'pens'"),
        ("title: a\nshape: {kind: circle, radios: 2}", "unknown key 'shape.circle.radios': did you mean 'radius'"),
        ("title: a\nmore: [{edg: 2}]", "unknown key 'more.0.edg': did you mean 'edge'"),
        ("pens: 2", "'title' is required"),
        ("title: a\npens: 0", "'pens': Input should be greater than or equal to 1 (got 0)"),
        ("title: [", "is not valid YAML"),
        ("- a", "must hold a mapping"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Drawing, write(tmp_path, text))
    assert message in str(caught.value)
    assert "drawing.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read config file .*none\.yaml: No such file"):
        load_config(Drawing, tmp_path / "none.yaml")


@pytest.mark.parametrize("override", ["pens", "=3"])
def test_a_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"must look like key\.sub=value"):
        load_config(Drawing, None, [override])


def test_an_override_cannot_go_through_a_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'title' is a value, not a section"):
        load_config(Drawing, write(tmp_path, "title: a"), ["title.x=1"])
