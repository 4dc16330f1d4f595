"""How a base's pooled picture features become comparable: centered and whitened by ordinary pictures.

Pooled tower features of any two pictures are much alike: a few strong directions (brightness, color, clutter)
dominate their cosine. Measured on ordinary pictures that belong to no task and divided out, what tells worlds
apart counts as much as what all share. The calibration is part of the base and as frozen as its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as dump_tensors
from torch import Tensor

from adapter_store.durable import write_durably
from adapter_store.errors import BaseModelError, StateInvalid

CALIBRATION_FILE = "calibration.safetensors"
SHRINKAGE = 0.03
"""Share of the mean variance that is added to every direction, so that quiet ones do not drown the rest."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageCalibration:
    """Hold what is subtracted from pooled features and what they are multiplied by.

    Attributes:
        mean: ``[dv]`` mean pooled feature of ordinary pictures.
        whitening: ``[dv, dv]`` symmetric, the inverse square root of their covariance, shrunk.
    """

    mean: Tensor
    whitening: Tensor

    @classmethod
    def of(cls, pooled: Tensor) -> ImageCalibration:
        """Return the calibration that ordinary pictures with pooled features ``[n, dv]`` give.

        Raises:
            BaseModelError: they do not differ.
        """
        pooled = pooled.double()
        mean = pooled.mean(dim=0)
        centered = pooled - mean
        covariance = centered.T @ centered / max(len(pooled) - 1, 1)
        variances, directions = torch.linalg.eigh(covariance)
        if not float(variances.mean()) > 1e-12 * float(mean.square().mean()):
            raise BaseModelError(
                f"the features of {len(pooled)} pictures do not differ, so nothing can be calibrated by them:"
                " give more, and different ones"
            )
        floor = SHRINKAGE * variances.mean()
        scales = (variances.clamp_min(0.0) + floor).rsqrt()
        return cls(mean.float(), (directions * scales @ directions.T).float())

    @classmethod
    def load(cls, path: Path) -> ImageCalibration | None:
        """Read a calibration; None if there is no such file.

        Raises:
            BaseModelError: the file is not a calibration.
        """
        if not path.is_file():
            return None
        try:
            tensors = load_file(path)
            mean, whitening = tensors["mean"].float(), tensors["whitening"].float()
        except (SafetensorError, KeyError) as error:
            raise BaseModelError(f"{path} is not a calibration of picture queries ({error!r})") from error
        if mean.ndim != 1 or whitening.shape != (len(mean), len(mean)):
            found = f"mean {list(mean.shape)}, whitening {list(whitening.shape)}"
            raise BaseModelError(f"{path} holds {found}: expected [dv] and [dv, dv]")
        if not bool(mean.isfinite().all()) or not bool(whitening.isfinite().all()):
            raise BaseModelError(f"{path} holds NaN or infinite values: calibrate the base anew")
        return cls(mean, whitening)

    def save(self, path: Path) -> None:
        """Write ``path``; it gets its name only when complete."""
        tensors = {"mean": self.mean.contiguous(), "whitening": self.whitening.contiguous()}
        write_durably(path, dump_tensors(tensors))

    def apply(self, pooled: Tensor) -> Tensor:
        """Return centered and whitened features of ``[B, dv]`` float32 pooled ones."""
        if self.mean.shape != pooled.shape[-1:]:
            raise StateInvalid(
                f"the calibration is for pooled features of {len(self.mean)} values, the tower gives"
                f" {pooled.shape[-1]}: the base folder's {CALIBRATION_FILE} belongs to another tower"
            )
        return (pooled - self.mean.to(pooled)) @ self.whitening.to(pooled)
