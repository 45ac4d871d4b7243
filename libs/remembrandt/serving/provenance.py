"""What a picture says of itself: the record that every PNG carries, and content credentials where a key is at hand."""

import io
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from remembrandt.errors import ConfigError
from remembrandt.generation.records import Record, encode_png
from remembrandt.serving.config import ProvenanceConfig

_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


class Provenance:
    """Encodes finished pictures.

    Args:
        config: None: the record alone, as text inside the PNG.

    Raises:
        ConfigError: a certificate or key that cannot be read, or no c2pa-python.
    """

    def __init__(self, config: ProvenanceConfig | None) -> None:
        self._config = config
        if config is not None:
            _ = self._signer

    def encode(self, image: Image.Image, record: Record) -> bytes:
        """A PNG with its record, signed where that is configured."""
        data = encode_png(image, record)
        return data if self._config is None else self._sign(data, record)

    def _sign(self, data: bytes, record: Record) -> bytes:
        import c2pa

        signed = io.BytesIO()
        with c2pa.Builder(json.dumps(manifest_of(record))) as builder:
            builder.sign(self._signer, "image/png", io.BytesIO(data), signed)
        return signed.getvalue()

    @cached_property
    def _signer(self) -> Any:
        assert self._config is not None
        try:
            import c2pa
        except ModuleNotFoundError:
            raise ConfigError("provenance needs c2pa-python: install remembrandt[provenance]") from None
        try:
            certificate, key = Path(self._config.certificate).read_bytes(), Path(self._config.private_key).read_bytes()
        except OSError as error:
            raise ConfigError(f"provenance: cannot read {error.filename}: {error.strerror}") from None
        algorithm = getattr(c2pa.C2paSigningAlg, self._config.algorithm.upper())
        try:
            return c2pa.Signer.from_info(
                c2pa.C2paSignerInfo(alg=algorithm, sign_cert=certificate, private_key=key, ta_url=None)
            )
        except c2pa.C2paError as error:
            raise ConfigError(f"provenance: {' '.join(str(error).split())[:160]}") from None


def manifest_of(record: Record) -> dict[str, Any]:
    """A C2PA manifest: made by a model, after these rows."""
    return {
        "claim_generator_info": [{"name": "Remembrandt"}],
        "title": record.text[:200] or record.model,
        "assertions": [
            {
                "label": "c2pa.actions.v2",
                "data": {
                    "actions": [
                        {
                            "action": "c2pa.created",
                            "digitalSourceType": _SOURCE,
                            "softwareAgent": {"name": f"Remembrandt {record.model}"},
                        }
                    ]
                },
            },
            {"label": "org.remembrandt.record", "data": record.to_json()},
        ],
    }
