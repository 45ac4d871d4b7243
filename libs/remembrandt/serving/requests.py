"""From a request's body to what each picture is drawn from."""

import secrets
from collections.abc import Sequence

from remembrandt.configuration import nearest
from remembrandt.diffusion.guidance import TextNeighborGuidance
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.errors import ConfigError
from remembrandt.generation.cascade import CascadeRequest, PairConfig, StageDraw
from remembrandt.generation.requests import DatabaseRef
from remembrandt.retrieval import Strategy, parse_strategy
from remembrandt.retrieval.registry import NeighborsStrategy
from remembrandt.serving.config import UploadConfig
from remembrandt.serving.errors import NotFoundError
from remembrandt.serving.models import ServedModel
from remembrandt.serving.retrieval import ModelRequest, ServedPicture
from remembrandt.serving.types import GenerationBody
from remembrandt.serving.uploads import decode_base64

# Dynamic thresholding is for large weights (P2 follows Imagen there); with small ones it takes the colour out.
_THRESHOLD, _LARGE_WEIGHT = 0.995, 8.0


def choose_model(body: GenerationBody, models: Sequence[ServedModel]) -> ServedModel:
    """The model that a request names, or the first one.

    Raises:
        NotFoundError: no such model.
        ConfigError: a size that it does not paint.
    """
    found = next((model for model in models if body.model in (None, model.name)), None)
    if found is None:
        raise NotFoundError(f"there is no model '{body.model}': {nearest(str(body.model), [m.name for m in models])}")
    if body.size not in (None, "auto", found.size):
        raise ConfigError(f"size {body.size} is not painted by '{found.name}': ask for {found.size}, or auto")
    return found


def picture_requests(
    body: GenerationBody, model: ServedModel, database: DatabaseRef | None, uploads: UploadConfig
) -> list[ModelRequest]:
    """One request a picture; they differ in their seeds.

    Raises:
        ConfigError: what the model does not have.
        UploadError: an exemplar that is not a picture.
    """
    first = secrets.randbelow(2**31) if body.seed is None else body.seed
    seeds = range(first, first + (body.n or 1))
    strategy = _strategy(body, model)
    if strategy not in model.strategies:
        raise ConfigError(f"'{model.name}' has no strategy '{strategy}': {nearest(strategy, model.strategies)}")
    if (body.steps or 1) > model.config.max_steps:
        raise ConfigError(
            f"{body.steps} steps are too many for '{model.name}': ask for {model.config.max_steps} at most"
        )
    kind = None if body.guidance is None else body.guidance.kind
    if kind is not None and kind not in model.guidance:
        raise ConfigError(f"'{model.name}' has no guidance '{kind}': {nearest(kind, model.guidance)}")
    pictures = [
        decode_base64(exemplar.image, uploads, f"exemplar {number}")
        for number, exemplar in enumerate(body.exemplars)
        if exemplar.image is not None
    ]
    build = _rdm if model.config.kind == "rdm" else _cascade
    return build(body, model, database, strategy, pictures, seeds)


def _strategy(body: GenerationBody, model: ServedModel) -> str:
    if body.strategy is not None:
        return body.strategy
    if body.exemplars:
        return "exemplars"
    if model.config.kind == "reimagen":
        return "bm25"
    return "neighbors" if body.prompt.strip() else "pseudo_query"


def _rdm(
    body: GenerationBody,
    model: ServedModel,
    database: DatabaseRef | None,
    strategy: str,
    pictures: list[bytes],
    seeds: Sequence[int],
) -> list[ModelRequest]:
    count = model.num_neighbors if body.num_neighbors is None else body.num_neighbors
    if strategy not in ("text", "exemplars") and count == 0:
        raise ConfigError(f"strategy '{strategy}' needs num_neighbors of 1 or more")
    if strategy in ("neighbors", "text", "text_and_neighbors", "bm25", "class_pool") and not body.prompt.strip():
        raise ConfigError(f"strategy '{strategy}' needs a prompt: give one, or use pseudo_query or exemplars")
    if strategy == "image" and len(pictures) != 1:
        raise ConfigError("strategy 'image' needs one exemplar with an image")
    scale = None if body.guidance is None else body.guidance.scale
    common = ServedPicture(
        text=body.prompt,
        image=pictures[0] if strategy == "image" else None,
        database=database,
        strategy=_parse(body, strategy, count),
        guidance_scale=2.0 if scale is None else scale,
        sampler=SamplerConfig(
            solver=body.solver or "dpm_solver++", num_inference_steps=body.steps or model.config.steps
        ),
        exemplar_rows=_rows(body) if strategy == "exemplars" else (),
        exemplar_images=tuple(pictures) if strategy == "exemplars" else (),
    )
    return [common.model_copy(update={"seed": seed}) for seed in seeds]


def _rows(body: GenerationBody) -> tuple[int, ...]:
    return tuple(exemplar.row for exemplar in body.exemplars if exemplar.row is not None)


def _parse(body: GenerationBody, strategy: str, count: int) -> Strategy:
    if strategy == "exemplars":
        if not body.exemplars:
            raise ConfigError("strategy 'exemplars' needs `exemplars`")
        return NeighborsStrategy()  # retrieval puts the exemplars in its place: it has the encoder
    settings: dict[str, object] = {"name": "neighbors" if strategy == "bm25" else strategy}
    if strategy != "text":
        settings["num_neighbors"] = count
    if strategy == "bm25":
        settings["similarity"] = "bm25"
    if strategy == "pseudo_query":
        settings["top_m"] = 0.1 if body.top_m is None else body.top_m
    if strategy == "class_pool":
        settings["pool_size"] = max(count, 20 if body.pool_size is None else body.pool_size)
    return parse_strategy(settings)


def _cascade(
    body: GenerationBody,
    model: ServedModel,
    database: DatabaseRef | None,
    strategy: str,
    pictures: list[bytes],
    seeds: Sequence[int],
) -> list[ModelRequest]:
    asked = body.guidance
    given = {
        "kind": None if asked is None else asked.kind,
        "text_weight": None if asked is None else asked.text_weight,
        "neighbor_weight": None if asked is None else asked.neighbor_weight,
        "interleave_ratio": None if asked is None else asked.eta,
    }
    guidance = TextNeighborGuidance.model_validate({k: v for k, v in given.items() if v is not None})
    large = max(guidance.text_weight, guidance.neighbor_weight) >= _LARGE_WEIGHT
    draw = StageDraw(
        guidance=guidance,
        sampler=SamplerConfig(
            solver=body.solver or "dpm_solver++",
            num_inference_steps=body.steps or model.config.steps,
            dynamic_threshold=_THRESHOLD if large else None,
        ),
    )
    count = model.num_neighbors if body.num_neighbors is None else body.num_neighbors
    texts = [exemplar.caption for exemplar in body.exemplars if exemplar.image is not None]
    pairs = tuple(PairConfig(image=data, caption=text) for data, text in zip(pictures, texts, strict=True))
    rows = _rows(body)
    if strategy == "exemplars" and not (rows or pairs):
        raise ConfigError("strategy 'exemplars' needs `exemplars`")
    retrieval = {"bm25": "bm25", "clip": "clip", "exemplars": "given", "none": "bm25"}[strategy]
    common = CascadeRequest.model_validate(
        {
            "text": body.prompt,
            "database": database,
            "retrieval": retrieval,
            "ids": rows if strategy == "exemplars" else (),
            "pairs": pairs if strategy == "exemplars" else (),
            "num_neighbors": 0 if strategy == "none" else count,
            "stages": (draw,),
        }
    )
    return [common.model_copy(update={"seed": seed}) for seed in seeds]
