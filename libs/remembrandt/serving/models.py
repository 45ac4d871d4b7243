"""What a served model can do, read from its folder: for requests, and for whoever asks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remembrandt.generation.cascade import stage_folders
from remembrandt.generation.models import model_folder
from remembrandt.models.first_stage.model import FirstStage
from remembrandt.models.folders import OWN_FIRST_STAGE, SHARED_FIRST_STAGE, read_facts
from remembrandt.models.rdm.config import RdmConfig
from remembrandt.models.reimagen.config import StageConfig
from remembrandt.models.reimagen.sampling import KIND
from remembrandt.serving.config import ModelConfig, ServiceConfig

RDM_STRATEGIES = (
    "neighbors",
    "text_and_neighbors",
    "text",
    "image",
    "class_pool",
    "pseudo_query",
    "exemplars",
    "bm25",
)
CASCADE_STRATEGIES = ("bm25", "clip", "exemplars", "none")


@dataclass(frozen=True)
class ServedModel:
    """A model as clients see it.

    Attributes:
        edge: of its pictures.
        num_neighbors: that it was trained with, the default.
    """

    name: str
    config: ModelConfig
    edge: int
    num_neighbors: int
    strategies: tuple[str, ...]
    guidance: tuple[str, ...]

    @property
    def size(self) -> str:
        """As OpenAI writes it."""
        return f"{self.edge}x{self.edge}"


def served_models(config: ServiceConfig) -> Mapping[str, ServedModel]:
    """By name.

    Raises:
        ConfigError: a model that is not there.
    """
    return {name: _served(name, model) for name, model in config.models.items()}


def _served(name: str, model: ModelConfig) -> ServedModel:
    if model.kind == "rdm":
        root = model_folder(model.model)
        facts = read_facts(root, "rdm")
        config = RdmConfig.model_validate(facts["model"])
        edge = config.latent_size * FirstStage.factor_of(facts.get(SHARED_FIRST_STAGE) or root / OWN_FIRST_STAGE)
        count = int(facts.get("num_neighbors") or 4)
        return ServedModel(name, model, edge, count, RDM_STRATEGIES, ("classifier_free",))
    last: dict[str, Any] = read_facts(stage_folders(model.model)[-1], KIND)
    stage = StageConfig.model_validate(last["model"])
    kinds = ("interleaved", "weighted", "joint", "plain")
    return ServedModel(name, model, stage.size, stage.num_neighbors, CASCADE_STRATEGIES, kinds)
