"""RDM's network, its folder, its objective and its sampler."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from remembrandt.diffusion.guidance import Context
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.errors import ConfigError, CorruptionError
from remembrandt.models.rdm.config import RdmConfig
from remembrandt.models.rdm.model import SharedPasses, build_unet, context_of_codes, num_parameters, run_unet
from remembrandt.models.rdm.objective import RdmObjective
from remembrandt.models.rdm.sampling import RdmSampler, SampleBatch, SampleSettings
from tests.support.models import TINY_RDM, save_tiny_rdm, tiny_first_stage

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs" / "train_rdm"
FAST = SampleSettings(2.0, SamplerConfig(solver="dpm_solver++", num_inference_steps=4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_rdm(tmp_path_factory.mktemp("rdm"))


@pytest.mark.parametrize(("name", "millions"), [("rdm-400m", 400.9), ("rdm-200m-k", 200.2), ("ldm-576m", 576.0)])
def test_the_configurations_of_table_5_have_its_parameters(name: str, millions: float) -> None:
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    with torch.device("meta"):
        unet = build_unet(RdmConfig.model_validate(values["model"]))
    assert num_parameters(unet) / 1e6 == pytest.approx(millions, rel=0.001)


def test_diffusers_opens_our_folder_and_predicts_the_same(folder: Path) -> None:
    ours = RdmSampler.load(folder)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([1, 900]), torch.randn(2, 3, 32)
    with torch.no_grad():
        expected = theirs(x, t, tokens).sample
        assert torch.allclose(run_unet(ours.unet, x, t, Context(tokens)), expected, atol=1e-6)
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    assert torch.allclose(scheduler.alphas_cumprod, ours.schedule.alphas_cumprod, atol=1e-7)
    diffusers.AutoencoderKL.from_pretrained(folder / "first_stage")


def test_one_batch_mixes_settings_and_numbers_of_neighbours(folder: Path) -> None:
    sampler = RdmSampler.load(folder)
    tokens = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 4, [True, False, False, False], [True, True, False, False]])
    settings = (
        FAST,
        SampleSettings(1.0, SamplerConfig(num_inference_steps=3, eta=1.0)),
        SampleSettings(5.0, SamplerConfig(solver="unipc", num_inference_steps=6)),
    )
    together = sampler.sample(SampleBatch(Context(tokens, mask), (7, 8, 9), settings))
    assert together.shape == (3, 3, 16, 16) and together.min() >= 0 and together.max() <= 1
    for place, count in ((0, 4), (1, 1), (2, 2)):
        own = SampleBatch(Context(tokens[place : place + 1, :count]), (7 + place,), settings[place : place + 1])
        assert torch.allclose(sampler.sample(own)[0], together[place], atol=1e-4)


@pytest.mark.parametrize("attention_at", [(8, 4), (4,)])
def test_passes_that_share_the_first_levels_are_as_if_each_were_alone(attention_at: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    unet = build_unet(TINY_RDM.model_copy(update={"attention_at": attention_at})).eval()
    x, t, place = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 1, 1, 0])
    mask = torch.tensor([[True, True, False], [True] * 3, [True, False, False], [True] * 3])
    context = Context(torch.randn(4, 3, TINY_RDM.context_dim), mask)
    with torch.no_grad():
        shared = SharedPasses(unet)(x, t, place, context)
        for number, picture in enumerate(place.tolist()):
            one = torch.tensor([picture])
            alone = run_unet(unet, x[one], t[one], context.take(torch.tensor([number])))
            assert torch.allclose(shared[number], alone[0], atol=1e-5)


def test_a_compiled_network_draws_the_same(folder: Path) -> None:
    asked = SampleBatch.uniform(Context(torch.randn(2, 2, 32)), [1, 2], FAST)
    compiled = RdmSampler.load(folder)
    compiled.compile(backend="eager")
    assert torch.allclose(compiled.sample(asked), RdmSampler.load(folder).sample(asked), atol=1e-5)


def test_neighbours_and_seeds_change_the_picture(folder: Path) -> None:
    sampler = RdmSampler.load(folder)
    tokens = torch.randn(2, 2, 32)
    same = SampleBatch.uniform(Context(tokens[:1].repeat(2, 1, 1)), [1, 1], FAST)
    first, second = sampler.sample(same)
    assert torch.allclose(first, second, atol=1e-5)
    assert not torch.allclose(*sampler.sample(SampleBatch.uniform(Context(tokens), [1, 1], FAST)), atol=1e-3)
    other_seeds = SampleBatch.uniform(Context(tokens[:1].repeat(2, 1, 1)), [1, 2], FAST)
    assert not torch.allclose(*sampler.sample(other_seeds), atol=1e-2)


def test_a_picture_without_neighbours_is_drawn_unconditionally(folder: Path) -> None:
    sampler = RdmSampler.load(folder)
    none = Context(torch.ones(2, 2, 32), torch.tensor([[True, True], [False, False]]))
    drawn = sampler.sample(SampleBatch.uniform(none, [3, 3], FAST))
    plain = sampler.sample(SampleBatch.uniform(Context(torch.zeros(1, 2, 32)), [3], FAST))
    assert torch.allclose(drawn[1], plain[0], atol=1e-4)


def test_embeddings_of_another_encoder_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="16 dimensions, and the model was trained with 32"):
        RdmSampler.load(folder).sample(SampleBatch.uniform(Context(torch.zeros(1, 2, 16)), [0], FAST))


def test_damaged_and_missing_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished model"):
        RdmSampler.load(tmp_path)
    folder = save_tiny_rdm(tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CorruptionError, match="unet"):
        RdmSampler.load(folder)


def test_the_loss_is_an_examples_own() -> None:
    objective = RdmObjective(TINY_RDM, tiny_first_stage(), {})
    torch.manual_seed(0)
    model = objective.configure_model()
    batch = {"latents_BCHW": torch.randn(4, 4, 8, 8), "neighbors_BKD": torch.randn(4, 2, 32)}
    seeds = np.array([11, 12, 13, 14])
    whole = objective.loss(model, objective.prepare(batch, seeds))
    part = {name: tensor[2:3] for name, tensor in batch.items()}
    alone = objective.loss(model, objective.prepare(part, seeds[2:3]))
    assert torch.allclose(whole.per_example_B[2], alone.per_example_B[0], atol=1e-5)
    assert whole.groups_B is not None and set(whole.groups_B.tolist()) <= {0, 1, 2, 3}


def test_codes_of_neighbours_become_the_papers_context() -> None:
    codes = torch.randn(2, 4, 256, 8, 8)
    context = context_of_codes(codes)
    assert context.shape == (2, 64, 1024)
    assert torch.equal(context[1, 9, 256:512], codes[1, 1, :, 1, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_size": 9}, "cannot be halved"),
        ({"channels": 24}, "heads"),
        ({"attention_at": (5,)}, "levels have edges"),
        ({"residual_resampling": True}, "condition: none"),
    ],
)
def test_impossible_networks_say_why(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RdmConfig(**{**TINY_RDM.model_dump(), **change})
