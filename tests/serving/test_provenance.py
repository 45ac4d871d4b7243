"""Pictures say what made them: as text inside the PNG, and as content credentials that a reader of C2PA verifies."""

import io
import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from remembrandt.errors import ConfigError
from remembrandt.generation import read_record
from remembrandt.generation.records import NeighborRecord, Record
from remembrandt.serving.config import ProvenanceConfig
from remembrandt.serving.provenance import Provenance

RECORD = Record(
    model="rdm-small", text="a red apple", database="emoji", version="v1", where={}, strategy={"name": "neighbors"},
    guidance_scale=2.0, sampler={}, seed=3,
    neighbors=(NeighborRecord(5, 0.5, "apple", "red apple", "Apache-2.0", {"artist": "Google Inc"}),),
)  # fmt: skip
LEAF = """
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=emailProtection
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
"""


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ProvenanceConfig:
    """A certificate for signing, by an authority of our own."""
    folder = tmp_path_factory.mktemp("certificate")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(
        folder,
        "req",
        "-x509",
        *curve,
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-days",
        "30",
        "-subj",
        "/CN=Test CA/O=Test",
    )
    openssl(folder, "req", *curve, "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/CN=Test signer/O=Test")
    (folder / "leaf.cnf").write_text(LEAF)
    openssl(
        folder, "x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out",
        "leaf.pem", "-days", "30", "-extfile", "leaf.cnf",
    )  # fmt: skip
    (folder / "chain.pem").write_bytes((folder / "leaf.pem").read_bytes() + (folder / "ca.pem").read_bytes())
    openssl(folder, "pkcs8", "-topk8", "-nocrypt", "-in", "leaf.key", "-out", "leaf.p8")
    return ProvenanceConfig(certificate=str(folder / "chain.pem"), private_key=str(folder / "leaf.p8"))


def picture() -> Image.Image:
    return Image.effect_noise((64, 64), 60).convert("RGB")


def test_without_a_certificate_the_record_is_inside_the_png() -> None:
    data = Provenance(None).encode(picture(), RECORD)
    assert read_record(io.BytesIO(data)) == RECORD


def test_with_a_certificate_a_reader_finds_signed_credentials(certificate: ProvenanceConfig) -> None:
    import c2pa

    data = Provenance(certificate).encode(picture(), RECORD)
    with c2pa.Reader("image/png", io.BytesIO(data)) as reader:
        found = json.loads(reader.json())
    active = found["manifests"][found["active_manifest"]]
    (actions,) = [own["data"] for own in active["assertions"] if own["label"].startswith("c2pa.actions")]
    assert actions["actions"][0]["digitalSourceType"].endswith("trainedAlgorithmicMedia")
    (record,) = [own["data"] for own in active["assertions"] if own["label"] == "org.remembrandt.record"]
    assert record["neighbors"][0]["licence"] == "Apache-2.0" and record["seed"] == 3
    failures = [own["code"] for own in found.get("validation_status", [])]
    assert all("untrusted" in code for code in failures), failures  # nobody trusts an authority of a test
    assert read_record(io.BytesIO(data)) == RECORD


def test_a_picture_that_was_changed_is_found_out(certificate: ProvenanceConfig) -> None:
    import c2pa

    data = bytearray(Provenance(certificate).encode(picture(), RECORD))
    place = data.rindex(b"IDAT") + 40
    data[place] ^= 0xFF
    with c2pa.Reader("image/png", io.BytesIO(bytes(data))) as reader:
        codes = [own["code"] for own in json.loads(reader.json()).get("validation_status", [])]
    assert any("mismatch" in code for code in codes)


def test_files_that_are_missing_or_no_keys_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        Provenance(ProvenanceConfig(certificate=str(tmp_path / "none.pem"), private_key=str(tmp_path / "none.key")))
    for name in ("a.pem", "a.key"):
        (tmp_path / name).write_text("no key")
    with pytest.raises(ConfigError, match="provenance"):
        Provenance(ProvenanceConfig(certificate=str(tmp_path / "a.pem"), private_key=str(tmp_path / "a.key")))
