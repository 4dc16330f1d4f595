"""Read and write what the project itself trained of the embedded base.

That is LLaVA's projector, a low-rank change of the language model's linears (merged when the base is
assembled) and the calibration of image queries. Linears that share an input share one down matrix: `qkv` is
query, key and value stacked, `gate_up` is gate and up stacked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as dump_tensors
from torch import Tensor

from adapter_store.base.download import file_sha256
from adapter_store.calibration import CALIBRATION_FILE, ImageCalibration
from adapter_store.durable import write_durably

TRAINED_FILE = "trained.safetensors"
FUSED_LINEARS: dict[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Name of a fused linear -> the linears of a decoder layer that it stacks along `d_out`."""


@dataclass(frozen=True, slots=True)
class TrainedPart:
    """Hold the trained tensors.

    Attributes:
        projector: LLaVA's projector by parameter name (`linear_1.weight` ...); empty if untrained.
        low_rank: `layers.{i}.{fused}.a` `[r, d_in]` and `.b` `[d_out, r]`; the change of a linear is `b @ a`.
        calibration: of image queries, or None.
        digest: sha256 over the files, or "untrained".
    """

    projector: dict[str, Tensor]
    low_rank: dict[str, Tensor]
    calibration: ImageCalibration | None
    digest: str


def shipped_weights_dir() -> Path:
    """Return the folder of the package that holds the released trained part."""
    return Path(__file__).parent / "weights"


def load_trained_part(folder: Path) -> TrainedPart:
    """Read a trained part; a folder without one gives an empty part."""
    trained, calibration = folder / TRAINED_FILE, folder / CALIBRATION_FILE
    if not trained.is_file():
        return TrainedPart({}, {}, None, "untrained")
    tensors = {name: tensor.float() for name, tensor in load_file(trained).items()}
    prefix = "projector."
    projector = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    low_rank = {name: t for name, t in tensors.items() if not name.startswith(prefix)}
    digest = hashlib.sha256(file_sha256(trained).encode())
    if calibration.is_file():
        digest.update(file_sha256(calibration).encode())
    return TrainedPart(projector, low_rank, ImageCalibration.load(calibration), digest.hexdigest())


def save_trained_part(
    folder: Path,
    projector: Mapping[str, Tensor],
    low_rank: Mapping[str, Tensor],
    calibration: ImageCalibration,
) -> None:
    """Write a trained part: the low-rank factors in half precision, everything else in single.

    Each file gets its name only when complete.
    """
    tensors = {name: value.half().contiguous() for name, value in low_rank.items()}
    tensors |= {f"projector.{name}": value.float().contiguous() for name, value in projector.items()}
    write_durably(folder / TRAINED_FILE, dump_tensors(tensors))
    calibration.save(folder / CALIBRATION_FILE)


def merge_low_rank(state: dict[str, Tensor], low_rank: Mapping[str, Tensor]) -> None:
    """Add the low-rank changes to a Llama state dict in place, computed in float64.

    Args:
        state: Parameters by name (`model.layers.0.self_attn.q_proj.weight` ...).
        low_rank: As in `TrainedPart`.
    """
    for name in sorted(low_rank):
        if not name.endswith(".a"):
            continue
        stem = name.removesuffix(".a")
        layer, fused = stem.rsplit(".", 1)
        change = low_rank[stem + ".b"].double() @ low_rank[name].double()
        start = 0
        for linear in FUSED_LINEARS[fused]:
            key = f"model.{layer}.{linear}.weight"
            rows = state[key].shape[0]
            state[key] = (state[key].double() + change[start : start + rows]).to(torch.float32)
            start += rows
