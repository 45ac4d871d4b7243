"""How a job's work is spread over a cluster; nothing here changes what comes out."""

from typing import Annotated, Literal

from pydantic import Field

from remembrandt.configuration import Config


class WorkersConfig(Config):
    """How the work is spread. Nothing here changes what is built; a build that goes on keeps its `block_size`."""

    block_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    encoders: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    encoder_cpus: float = Field(0.5, gt=0)
    encoder_gpus: float | Literal["auto"] = "auto"
    encoder_threads: int = Field(1, ge=1)
    task_cpus: float = Field(0.5, gt=0)
