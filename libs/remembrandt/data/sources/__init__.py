"""Places that images and texts come from, behind one interface."""

from typing import Annotated

from pydantic import Field

from remembrandt.data.records import Source
from remembrandt.data.sources.clip_retrieval import ClipRetrievalConfig, ClipRetrievalSource
from remembrandt.data.sources.images import ImagesConfig, ImagesSource
from remembrandt.data.sources.parquet import ParquetConfig, ParquetSource
from remembrandt.data.sources.rdm import RdmNpzConfig, RdmNpzSource
from remembrandt.data.sources.texts import TextsConfig, open_texts
from remembrandt.data.sources.webdataset import WebdatasetConfig, WebdatasetSource

SourceConfig = Annotated[
    ImagesConfig | WebdatasetConfig | ParquetConfig | ClipRetrievalConfig | RdmNpzConfig | TextsConfig,
    Field(discriminator="kind"),
]


def open_source(config: SourceConfig) -> Source:
    """The source that a configuration describes, listed and ready to be cut into blocks.

    Raises:
        SourceError: missing, empty, unreadable, or without a column that it needs.
    """
    match config:
        case ImagesConfig():
            return ImagesSource(config)
        case WebdatasetConfig():
            return WebdatasetSource(config)
        case ParquetConfig():
            return ParquetSource(config)
        case ClipRetrievalConfig():
            return ClipRetrievalSource(config)
        case RdmNpzConfig():
            return RdmNpzSource(config)
        case TextsConfig():
            return open_texts(config)
