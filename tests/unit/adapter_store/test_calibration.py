"""Check that a calibration whitens what it was made from, survives its file, and refuses others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapter_store.calibration import CALIBRATION_FILE, ImageCalibration
from adapter_store.errors import BaseModelError, StateInvalid


def _features(count: int, seed: int = 0) -> torch.Tensor:
    """Return features with one direction a hundred times as strong as the rest, around a mean."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.cat([torch.tensor([100.0]), torch.ones(7)])
    return torch.randn(count, 8, generator=generator) * scales + torch.arange(8.0)


def test_directions_count_alike_after_whitening() -> None:
    calibration = ImageCalibration.of(_features(4000))
    spread = calibration.apply(_features(4000, seed=1)).std(dim=0)
    assert float(spread[0]) == pytest.approx(1.0, abs=0.05)
    # The floor is 3 % of the mean variance, about 37: quiet directions are damped, not blown up.
    assert float(spread[1:].max()) < 0.2


@pytest.mark.parametrize("pooled", [torch.ones(2, 8), torch.zeros(5, 8), torch.randn(1, 8)])
def test_pictures_that_do_not_differ_calibrate_nothing(pooled: torch.Tensor) -> None:
    with pytest.raises(BaseModelError, match="do not differ"):
        ImageCalibration.of(pooled)


def test_round_trip(tmp_path: Path) -> None:
    calibration = ImageCalibration.of(_features(50))
    calibration.save(tmp_path / CALIBRATION_FILE)
    read = ImageCalibration.load(tmp_path / CALIBRATION_FILE)
    assert read is not None
    assert torch.equal(read.mean, calibration.mean)
    assert torch.equal(read.whitening, calibration.whitening)
    assert ImageCalibration.load(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "tensors",
    [
        {"mean": torch.zeros(3)},
        {"mean": torch.zeros(3), "whitening": torch.zeros(2, 3)},
        {"mean": torch.zeros(3), "whitening": torch.full((3, 3), torch.nan)},
    ],
    ids=["lacking", "misshapen", "not finite"],
)
def test_another_file_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "c.safetensors")
    with pytest.raises(BaseModelError, match=r"c\.safetensors"):
        ImageCalibration.load(tmp_path / "c.safetensors")


def test_features_of_another_tower_are_refused() -> None:
    with pytest.raises(StateInvalid, match="belongs to another tower"):
        ImageCalibration.of(_features(9)).apply(torch.zeros(1, 7))
