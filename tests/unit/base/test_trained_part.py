"""Check that the trained part survives its file and merges as a plain sum."""

from __future__ import annotations

from pathlib import Path

import torch

from adapter_store.base.assemble import base_digest
from adapter_store.base.trained_part import TrainedPart, load_trained_part, merge_low_rank, save_trained_part
from adapter_store.calibration import ImageCalibration

CALIBRATION = ImageCalibration(torch.arange(3.0), 2 * torch.eye(3))


def _factors(rank: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"layers.0.qkv.a": torch.randn(rank, 6), "layers.0.qkv.b": torch.randn(10, rank)}


def test_round_trip_and_digest(tmp_path: Path) -> None:
    projector = {"linear_1.weight": torch.randn(4, 3), "linear_1.bias": torch.randn(4)}
    save_trained_part(tmp_path, projector, _factors(), CALIBRATION)
    part = load_trained_part(tmp_path)
    assert torch.equal(part.projector["linear_1.weight"], projector["linear_1.weight"])
    assert torch.equal(part.low_rank["layers.0.qkv.a"], _factors()["layers.0.qkv.a"].half().float())
    assert part.calibration is not None
    assert torch.equal(part.calibration.mean, CALIBRATION.mean)
    assert torch.equal(part.calibration.whitening, CALIBRATION.whitening)
    save_trained_part(tmp_path, projector, {"layers.0.qkv.a": torch.zeros(2, 6)}, CALIBRATION)
    assert load_trained_part(tmp_path).digest != part.digest


def test_a_missing_part_is_untrained_and_changes_the_base_digest(tmp_path: Path) -> None:
    part = load_trained_part(tmp_path)
    assert part == TrainedPart({}, {}, None, "untrained")
    assert base_digest(part) != base_digest(TrainedPart({}, {}, None, "other"))


def test_merge_adds_the_stacked_rows_to_the_right_linears() -> None:
    state = {
        "model.layers.0.self_attn.q_proj.weight": torch.randn(6, 6),
        "model.layers.0.self_attn.k_proj.weight": torch.randn(2, 6),
        "model.layers.0.self_attn.v_proj.weight": torch.randn(2, 6),
    }
    before = {name: tensor.clone() for name, tensor in state.items()}
    factors = _factors()
    merge_low_rank(state, factors)
    change = factors["layers.0.qkv.b"] @ factors["layers.0.qkv.a"]
    moved = torch.cat([state[name] - before[name] for name in before])
    assert torch.allclose(moved, change, atol=1e-6)
