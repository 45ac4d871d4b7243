"""What a resumed run of train_clip may not change."""

from pathlib import Path
from typing import Any

import pytest

from remembrandt.configuration import load_config
from remembrandt.errors import ConfigError
from remembrandt.training.contrastive.config import TrainClipConfig, check_unchanged

BEFORE = load_config(TrainClipConfig, Path(__file__).parents[3] / "jobs" / "configs" / "train_clip" / "tiny.yaml")


def changed(section: str, **values: Any) -> TrainClipConfig:
    return BEFORE.model_copy(update={section: getattr(BEFORE, section).model_copy(update=values)})


def test_places_and_intervals_may_change() -> None:
    check_unchanged(BEFORE, BEFORE.model_copy(update={"output": "elsewhere", "workers": 3, "log_every": 7}))
    check_unchanged(BEFORE, changed("data", cache="elsewhere"))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (changed("optimisation", learning_rate=0.5), "optimisation = "),
        (changed("augmentation", flip=0.9), "augmentation = "),
        (changed("data", unseen_style="another"), "data = "),
        (BEFORE.model_copy(update={"seed": 9}), "seed = 0 and cannot go on with 9"),
    ],
)
def test_what_losses_depend_on_may_not(now: TrainClipConfig, message: str) -> None:
    with pytest.raises(ConfigError, match="give the run another name") as caught:
        check_unchanged(BEFORE, now)
    assert message in str(caught.value)
