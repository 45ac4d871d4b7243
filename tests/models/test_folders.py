"""Models in half precision, as they ship."""

from pathlib import Path

import pytest
import torch

from remembrandt.errors import ConfigError
from remembrandt.models import folders
from remembrandt.models.folders import pack_model
from remembrandt.models.rdm.sampling import RdmSampler
from tests.support.models import save_tiny_rdm, tiny_first_stage


def test_a_packed_model_is_half_as_large_and_says_the_same(tmp_path: Path) -> None:
    folder = save_tiny_rdm(tmp_path / "whole", note="kept")
    written = pack_model(folder, tmp_path / "packed")
    whole = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert written == sum(path.stat().st_size for path in (tmp_path / "packed").rglob("*") if path.is_file())
    assert written < 0.6 * whole
    before, after = RdmSampler.load(folder), RdmSampler.load(tmp_path / "packed")
    assert after.facts == before.facts
    for old, new in zip(before.unet.state_dict().values(), after.unet.state_dict().values(), strict=True):
        assert new.dtype == torch.float32 and torch.allclose(old, new, atol=1e-3, rtol=1e-3)
    with pytest.raises(ConfigError, match="exists already"):
        pack_model(folder, tmp_path / "packed")


def test_a_packed_model_may_refer_to_a_first_stage_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, shipped = save_tiny_rdm(tmp_path / "whole"), tmp_path / "weights"
    tiny_first_stage().save(shipped / "stage")
    tiny_first_stage(seed=5).save(shipped / "another")
    monkeypatch.setattr(folders, "SHIPPED", shipped)
    pack_model(folder, shipped / "rdm", first_stage="stage")
    assert not (shipped / "rdm" / "first_stage").exists()
    latents = torch.randn(1, 4, 8, 8)
    expected = RdmSampler.load(folder).first_stage.decode(latents)
    assert torch.allclose(RdmSampler.load("rdm").first_stage.decode(latents), expected, atol=1e-5)
    with pytest.raises(ConfigError, match="first stage is not 'another'"):
        pack_model(folder, tmp_path / "wrong", first_stage="another")
