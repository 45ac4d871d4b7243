"""The states of a network, counted as DeepSpeed's own estimator counts them, and against what one really keeps."""

import pytest

from remembrandt.training.config import LoopConfig, OptimizerConfig
from remembrandt.training.memory import state_bytes

ADAM = LoopConfig(precision="bf16", zero_stage=3, optimizer=OptimizerConfig(kind="adam"))


def test_states_are_spread_as_the_stage_says() -> None:
    states = state_bytes(1_000_000, ADAM)
    # 2 weights, 2 gradients, 4 masters and 8 moments, 4 of the average.
    assert [states.per_gpu(1, stage) for stage in range(4)] == [20_000_000] * 4
    assert [states.per_gpu(4, stage) for stage in range(4)] == [20_000_000, 8_000_000, 6_500_000, 5_000_000]
    assert states.per_gpu(64, 3) == 20_000_000 // 64


def test_adafactor_keeps_no_moments_of_whole_matrices_and_fp32_no_masters() -> None:
    adafactor = ADAM.model_copy(update={"optimizer": OptimizerConfig(kind="adafactor")})
    assert state_bytes(10, adafactor).optimizer == 80, "masters, and a moment of the flat buffer"
    assert state_bytes(10, adafactor.model_copy(update={"precision": "fp32", "zero_stage": 0})).optimizer == 0
    assert state_bytes(10, ADAM.model_copy(update={"precision": "fp32"})).optimizer == 80


def test_zero_3_agrees_with_deepspeeds_estimator() -> None:
    estimate = pytest.importorskip("deepspeed.runtime.zero.stage3").estimate_zero3_model_states_mem_needs
    parameters, gpus = 2_547_442_691, 8
    _, theirs, _ = estimate(
        total_params=parameters, largest_layer_params=0, num_gpus_per_node=gpus, num_nodes=1, cpu_offload=False
    )
    states = state_bytes(parameters, ADAM)
    # It counts fp32 gradients beside fp16 ones (18 bytes a parameter, ours 16), and no average.
    ours = states.per_gpu(gpus, 3) - states.average // gpus
    assert ours == pytest.approx(theirs * 16 / 18, rel=0.01)
