import pytest

from remembrandt.training.config import OptimizerConfig
from remembrandt.training.schedules import ema_decay, learning_rate


def test_warm_up_rises_to_the_peak_and_stays() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup=4)
    assert [learning_rate(step, 100, config) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_cosine_falls_to_the_final_fraction() -> None:
    config = OptimizerConfig(learning_rate=2.0, schedule="cosine", final_fraction=0.1, warmup=10)
    assert learning_rate(10, 110, config) == pytest.approx(2.0)
    assert learning_rate(60, 110, config) == pytest.approx(1.1)
    assert learning_rate(110, 110, config) == pytest.approx(0.2)


def test_a_young_average_follows_closely() -> None:
    assert ema_decay(0, 0.999) == 0.1
    assert ema_decay(10**6, 0.999) == 0.999
