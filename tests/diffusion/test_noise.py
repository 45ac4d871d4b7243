import torch

from remembrandt.diffusion.noise import seeded_normal, seeded_uniform


def test_a_row_depends_on_its_own_seed_and_stream_alone() -> None:
    together = seeded_normal([5, 6, 7], (4, 8, 8), stream=3)
    alone = seeded_normal([6], (4, 8, 8), stream=3)
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(alone, seeded_normal([6], (4, 8, 8), stream=4))
    assert torch.equal(seeded_uniform([5, 6], 1)[1:], seeded_uniform([6], 1))


def test_noise_is_standard_normal() -> None:
    noise = seeded_normal(range(64), (4, 16, 16))
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
