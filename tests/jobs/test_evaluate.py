"""Which protocol a configuration file is for."""

from argparse import Namespace
from pathlib import Path

import pytest

from jobs.evaluate import CONFIGS, chosen
from remembrandt.configuration import load_config
from remembrandt.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "jobs" / "configs" / "evaluate"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_file_says_by_itself_what_is_measured(path: Path) -> None:
    cls = chosen(Namespace(protocol=None, config=str(path)))
    assert load_config(cls, path, ["out=somewhere"]).protocol in CONFIGS  # type: ignore[attr-defined]


def test_the_command_line_goes_before_the_file_and_an_unknown_protocol_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("protocol: first-stag")
    assert chosen(Namespace(protocol="rdm", config=str(path))) is CONFIGS["rdm"]
    with pytest.raises(ConfigError, match=r"no protocol 'first-stag': did you mean 'first-stage'\?"):
        chosen(Namespace(protocol=None, config=str(path)))
