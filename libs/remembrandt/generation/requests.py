"""What one picture is asked for by."""

from pydantic import Field

from remembrandt.configuration import Config
from remembrandt.databases.hits import Filter
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.retrieval import StrategyConfig
from remembrandt.retrieval.registry import NeighborsStrategy


class DatabaseRef(Config):
    """A database, or a part of one.

    Attributes:
        uri: `<root>/<name>`; `version` None: the live one.
        where: column → allowed values; only such rows are retrieved.
        without: rows that are not.
    """

    uri: str
    version: str | None = None
    where: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    without: tuple[int, ...] = ()

    @property
    def filter(self) -> Filter | None:
        """`where` and `without` for a search."""
        return Filter(equals=self.where, exclude_ids=self.without) or None

    @property
    def key(self) -> tuple[str, str | None]:
        """Which version it is, whatever part of it."""
        return self.uri, self.version


class PictureRequest(Config):
    """One picture.

    Attributes:
        text: the prompt, or the class name for `class_pool`; unused by strategies that start from nothing or an image.
        image: the query image, for the strategy `image`: path of a file, or its content.
        database: where neighbours come from; None only for a model without retrieval.
        strategy: how they are chosen (ξ of P1).
        guidance_scale: s; 1 leaves guidance out.
        sampler: solver, steps, η.
        seed: of everything that is drawn. The same request gives the same picture, whatever it is drawn beside.
    """

    text: str = ""
    image: str | bytes | None = None
    database: DatabaseRef | None = None
    strategy: StrategyConfig = NeighborsStrategy()
    guidance_scale: float = Field(2.0, ge=0)
    sampler: SamplerConfig = SamplerConfig(solver="dpm_solver++", num_inference_steps=25)
    seed: int = Field(0, ge=0)
