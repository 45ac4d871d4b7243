"""What may change between a run and its continuation."""

from dataclasses import replace

import pytest

from remembrandt.errors import ConfigError
from remembrandt.training.checkpoints import Position, unchanging
from remembrandt.training.config import LoopConfig, OptimizerConfig

LOOP = LoopConfig(steps=10, batch_size=8, precision="autocast")


SETTINGS = {"model": {"channels": 64}, "loss": {"kl": 1.0}, "storage": "runs"}


def position(loop: LoopConfig = LOOP, **settings: object) -> Position:
    return Position.of(4, loop, unchanging(loop, {**SETTINGS, **settings}), {"database": "emoji/1"})


def test_the_length_of_a_run_and_its_logging_may_change() -> None:
    position().check(
        position(LOOP.model_copy(update={"steps": 99, "log_every": 1, "keep": 5, "workers": 2}), storage="elsewhere")
    )


def test_the_length_may_not_where_the_learning_rate_depends_on_it() -> None:
    falling = LOOP.model_copy(update={"optimizer": OptimizerConfig(schedule="cosine")})
    position(falling).check(position(falling.model_copy(update={"log_every": 1})))
    with pytest.raises(ConfigError, match=r"loop\.steps = 10 and cannot go on with 99"):
        position(falling).check(position(falling.model_copy(update={"steps": 99})))


def test_a_run_from_before_a_setting_was_kept_goes_on() -> None:
    older = replace(position(), settings={"model": SETTINGS["model"]})
    older.check(position(loss={"kl": 2.0}))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (position(LOOP.model_copy(update={"batch_size": 4})), "loop.batch_size = 8 and cannot go on with 4"),
        (position(LOOP.model_copy(update={"seed": 1})), "loop.seed = 0"),
        (replace(position(), identity={"database": "emoji/2"}), "database emoji/1, and finds emoji/2 now"),
        (position(model={"channels": 32}), "model = "),
        (position(loss={"kl": 2.0}), "loss = {'kl': 1.0} and cannot go on with {'kl': 2.0}"),
        (position(LOOP.model_copy(update={"zero_stage": 1})), "ZeRO stage 0 on 1 workers"),
    ],
)
def test_what_losses_depend_on_may_not(now: Position, message: str) -> None:
    with pytest.raises(ConfigError, match="run") as caught:
        position().check(now)
    assert message in str(caught.value)


def test_bf16_at_stage_0_is_kept_as_stage_1_is() -> None:
    half = LOOP.model_copy(update={"precision": "bf16"})
    position(half).check(position(half.model_copy(update={"zero_stage": 1})))
    with pytest.raises(ConfigError, match=r"ZeRO stage 1 on 1 workers .* may change its workers"):
        position(half).check(position(half.model_copy(update={"workers": 2})))


def test_spread_state_keeps_its_workers() -> None:
    spread = LOOP.model_copy(update={"zero_stage": 2, "workers": 2})
    position(spread).check(position(spread))
    with pytest.raises(ConfigError, match="only stage 0 may change its workers"):
        position(spread).check(position(spread.model_copy(update={"workers": 4})))
