"""What a worker needs before its first step: pairs, tokenizer, network, the teacher's targets.

Shapes: N phrases, T tokens, D embedding, E entities trained on.
"""

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import open_clip
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from remembrandt.encoders.normalisation import PixelNormalisation
from remembrandt.encoders.resolution import preprocess_of, transform_of
from remembrandt.errors import ConfigError
from remembrandt.training.contrastive import vocabulary
from remembrandt.training.contrastive.config import DistillationConfig, TrainClipConfig
from remembrandt.training.contrastive.data import BatchPlan, PairSet, load_pairs, trained_on
from remembrandt.training.contrastive.loss import num_workers
from remembrandt.training.contrastive.teacher import read_phrases, teacher_embeddings
from remembrandt.training.contrastive.text import principal_axes, project, start_tokens_from, token_strings

T = TypeVar("T")
_KEYWORD_WEIGHT = 20


@dataclass(frozen=True)
class Lessons:
    """What the teacher says.

    Attributes:
        tokens_NT: phrases as int32 token ids; the last `num_captions` are the captions' own.
        targets_ND: the teacher's unit vectors on the principal axes of the student's dimension, float32.
        num_captions: how many phrases come from captions.
        alike_EE: for each entity trained on, which others the teacher finds alike; rows sum to 1.
    """

    tokens_NT: torch.Tensor
    targets_ND: torch.Tensor
    num_captions: int
    alike_EE: torch.Tensor

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each phrase, with start and end."""
        return (self.tokens_NT.argmax(dim=-1) + 1).numpy()


@dataclass
class Workbench:
    """Everything that stays the same over a run, and the network in its starting state.

    Attributes:
        merges: the vocabulary's file, or None for CLIP's own.
        taught: where the text tower is kept after its text-only steps.
    """

    config: TrainClipConfig
    device: torch.device
    pairs: PairSet
    plan: BatchPlan
    merges: Path | None
    model_config: dict[str, Any]
    tokenizer: SimpleTokenizer
    normalise: PixelNormalisation
    lessons: Lessons | None
    taught: Path | None
    model: CLIP


def set_up(config: TrainClipConfig, device: torch.device, local_rank: int) -> Workbench:
    """Builds the workbench of one worker; the slow parts are done once a node and cached.

    Raises:
        ConfigError: a model that cannot be built, no teacher, no phrases.
        SourceError: nothing to train on.
    """
    preprocess = preprocess_of(config.model, config.preprocess)
    pairs = _first_on_node(local_rank, lambda: load_pairs(config.data, transform_of(preprocess)))
    optimisation = config.optimisation
    plan = BatchPlan(pairs.pairs, config.data, optimisation.entities, optimisation.views, config.seed)
    if plan.batch_entities % num_workers():
        count = plan.batch_entities
        raise ConfigError(f"optimisation.entities ({count}) must be a multiple of the {num_workers()} workers")
    captions = _captions(pairs, config)
    phrases = _phrases(config.distillation)
    merges = _first_on_node(local_rank, lambda: _vocabulary(config, phrases, captions))
    tokenizer = _tokenizer(config.model, merges)
    model_config = _complete(config.model, tokenizer, merges)
    torch.manual_seed(config.seed)
    model = _build(model_config)
    lessons = None
    if config.distillation is not None:
        teacher = config.distillation
        lessons = _first_on_node(
            local_rank, lambda: _learn(config, teacher, phrases, captions, tokenizer, model, plan, pairs)
        )
    normalise = PixelNormalisation(preprocess.mean, preprocess.std).to(device)
    model = model.to(device)
    taught = _taught_file(config, model_config, phrases, captions, merges)
    return Workbench(config, device, pairs, plan, merges, model_config, tokenizer, normalise, lessons, taught, model)


def _first_on_node(local_rank: int, work: Callable[[], T]) -> T:
    """Lets the node's first worker fill the cache before the others read it."""
    if num_workers() == 1:
        return work()
    if local_rank == 0:
        result = work()
        dist.barrier()
        return result
    dist.barrier()
    return work()


def _captions(pairs: PairSet, config: TrainClipConfig) -> list[str]:
    """Captions and their keywords, of pairs that may be trained on."""
    whole = [caption for pair in pairs.pairs if trained_on(pair, config.data) for caption in pair.captions]
    words = [word.strip() for caption in whole for word in caption.split(",")]
    return [text for text in dict.fromkeys(whole + words) if text]


def _phrases(config: DistillationConfig | None) -> list[str]:
    sources = config.phrases if config else ()
    return list(dict.fromkeys(phrase for source in sources for phrase in read_phrases(source)))


def _vocabulary(config: TrainClipConfig, phrases: list[str], captions: list[str]) -> Path | None:
    if config.num_merges is None:
        return None
    file = Path(config.data.cache).expanduser() / config.name / vocabulary.FILE_NAME
    keywords = [caption for caption in captions if "," not in caption]
    weighted = [(phrase, 1) for phrase in phrases] + [(keyword, _KEYWORD_WEIGHT) for keyword in keywords]
    vocabulary.write_vocabulary(weighted, config.num_merges, file)
    return file


def _tokenizer(model_config: dict[str, Any], merges: Path | None) -> SimpleTokenizer:
    context = model_config["text_cfg"].get("context_length", 77)
    return SimpleTokenizer(context_length=context, **({"bpe_path": str(merges)} if merges else {}))


def _complete(model_config: dict[str, Any], tokenizer: SimpleTokenizer, merges: Path | None) -> dict[str, Any]:
    """The model config with the vocabulary's size and place."""
    completed = copy.deepcopy(model_config)
    completed["text_cfg"]["vocab_size"] = tokenizer.vocab_size
    if merges is not None:
        completed["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": vocabulary.FILE_NAME}
    return completed


def _taught_file(
    config: TrainClipConfig, model_config: dict[str, Any], phrases: list[str], captions: list[str], merges: Path | None
) -> Path | None:
    """Where the cache keeps a text tower after its text-only steps; the name says what it was taught, and how."""
    if config.distillation is None:
        return None
    recipe = config.distillation.model_dump(
        include={"teacher", "steps", "batch_size", "learning_rate", "warmup", "weight_decay"}
    )
    identity = json.dumps([recipe, model_config["embed_dim"], model_config["text_cfg"], config.seed, num_workers()])
    digest = hashlib.sha256("\n".join([identity, *phrases, *captions]).encode())
    digest.update(merges.read_bytes() if merges else b"")
    return Path(config.data.cache).expanduser() / f"text-{digest.hexdigest()[:16]}.pt"


def _build(model_config: dict[str, Any]) -> CLIP:
    try:
        return CLIP(**copy.deepcopy(model_config))
    except (TypeError, KeyError) as error:
        raise ConfigError(f"'model' is no open_clip model_cfg: {' '.join(str(error).split())}") from None


def _learn(
    config: TrainClipConfig,
    distillation: DistillationConfig,
    phrases: list[str],
    captions: list[str],
    tokenizer: SimpleTokenizer,
    model: open_clip.CLIP,
    plan: BatchPlan,
    pairs: PairSet,
) -> Lessons:
    """Asks the teacher about phrases, captions, entity names and tokens, and starts the token embeddings from it."""
    cache = Path(config.data.cache).expanduser()
    general_NE = teacher_embeddings(distillation.teacher, phrases, cache) if phrases else None
    captions_NE = teacher_embeddings(distillation.teacher, captions, cache)
    names_EE = teacher_embeddings(distillation.teacher, [pairs.labels[name] for name in plan.entity_names], cache)
    start_tokens_from(model, teacher_embeddings(distillation.teacher, token_strings(tokenizer), cache))
    everything_NE = captions_NE if general_NE is None else np.concatenate([general_NE, captions_NE])
    axes_ED = principal_axes(everything_NE, int(config.model["embed_dim"]))
    tokens_NT = tokenizer([*phrases, *captions]).int()
    names_ED = torch.from_numpy(project(names_EE, axes_ED))
    alike_EE = torch.softmax(names_ED @ names_ED.T / config.optimisation.smoothing_temperature, dim=1)
    return Lessons(tokens_NT, torch.from_numpy(project(everything_NE, axes_ED)), len(captions), alike_EE)
