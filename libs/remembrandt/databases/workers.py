"""How a job's work is spread over a cluster; nothing here changes what comes out."""

from typing import Literal

from pydantic import Field

from remembrandt.configuration import Config


class WorkersConfig(Config):
    """How the work is spread. Nothing here changes what is built."""

    block_size: int | Literal["auto"] = "auto"
    encoders: int | Literal["auto"] = "auto"
    encoder_cpus: float = Field(0.5, gt=0)
    encoder_gpus: float | Literal["auto"] = "auto"
    encoder_threads: int = Field(1, ge=1)
    task_cpus: float = Field(0.5, gt=0)
