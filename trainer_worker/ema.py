"""Balance yesterday's answers against today's: the EMA whose weight is computed (eqs. 7-10).

The optimizer moves *live* tensors; what is evaluated and served is a second copy, theta*. The weight of
each update follows from the loss's second-order expansion instead of from tuning, separately for every
trained tensor: a stacked tensor ``[L, ...]`` gets one alpha per layer. This file knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from adapter_store.errors import InputError
from adapter_store.jobs.hyperparameters import EmaMode

FIXED_ALPHA = 0.01
_CONSTANT: dict[str, float] = {"fixed": FIXED_ALPHA, "off": 1.0}
HISTOGRAM_EDGES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)


def alpha_of(
    gradient_norm: Tensor, moved: Tensor, lag: Tensor, gradient_change: Tensor, *, mode: EmaMode
) -> tuple[Tensor, Tensor]:
    """Compute the weight of the new parameters from four L1 norms (eqs. 8, 9, 10).

    Args:
        gradient_norm: ``|g|`` of this step's reduced, clipped gradient, any shape.
        moved: ``|theta - theta'|``, how far the optimizer just moved the live tensor.
        lag: ``|theta - theta*|``, how far the served copy is behind.
        gradient_change: ``|g - g'|``; pass NaN on the first step, when there is no ``g'``.
        mode: ``normalised`` (eq. 8), ``released`` (eq. 9), ``fixed`` (eq. 10) or ``off`` (alpha 1: what is
            served is what was trained).

    Returns:
        ``(alpha, fallback)`` of the same shape; ``fallback`` marks a zero denominator, a first step or a
        value outside (0, 1), all of which get 0.01.
    """
    if mode in _CONSTANT:
        return torch.full_like(lag, _CONSTANT[mode]), torch.zeros_like(lag, dtype=torch.bool)
    numerator = (1 + gradient_norm) * moved if mode == "normalised" else 2 * (1 + gradient_norm)
    denominator = lag * gradient_change
    alpha = numerator / denominator
    valid = (denominator > 0) & (alpha > 0) & (alpha < 1)
    return torch.where(valid, alpha, torch.full_like(alpha, FIXED_ALPHA)), ~valid


@dataclass(slots=True)
class AlphaStatistics:
    """Count the alphas of one tensor kind: a histogram, their mean and the share of fall-backs."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(HISTOGRAM_EDGES) - 1))
    total: float = 0.0
    seen: int = 0
    fallbacks: int = 0

    def add(self, alpha: Tensor, fallback: Tensor) -> None:
        """Take in the alphas ``[L]`` of one step."""
        edges = torch.tensor(HISTOGRAM_EDGES, dtype=alpha.dtype)
        counted = torch.histogram(alpha.detach().cpu(), edges).hist
        self.counts = [a + int(b) for a, b in zip(self.counts, counted.tolist(), strict=True)]
        self.total += float(alpha.sum())
        self.seen += alpha.numel()
        self.fallbacks += int(fallback.sum())

    @property
    def mean(self) -> float:
        """Return the mean alpha, 0 when none was seen."""
        return self.total / self.seen if self.seen else 0.0

    @property
    def fallback_ratio(self) -> float:
        """Return the share of alphas that fell back to 0.01."""
        return self.fallbacks / self.seen if self.seen else 0.0

    def to_dict(self) -> dict[str, object]:
        """Return plain numbers for an event or a manifest."""
        return {
            "mean": round(self.mean, 5),
            "fallback_ratio": round(self.fallback_ratio, 4),
            "edges": list(HISTOGRAM_EDGES),
            "counts": list(self.counts),
        }


class BalancedEma:
    """Keep the served copy theta* of a set of live tensors (eq. 7).

    Every live tensor is stacked over layers, ``[L, ...]``; norms are L1 over all other dimensions. Call
    ``update`` once after each optimizer step, with the gradients of that step still in place.
    """

    def __init__(self, live: Mapping[str, Tensor], served: Mapping[str, Tensor], *, mode: EmaMode) -> None:
        if mode not in get_args(EmaMode):
            raise InputError(
                f"ema_mode {mode!r} is unknown: use one of {', '.join(get_args(EmaMode))}", param="ema_mode"
            )
        self._mode: EmaMode = mode
        self._live = dict(live)
        self.served = {kind: served[kind].detach().float().clone() for kind in self._live}
        self._before = {kind: tensor.detach().clone() for kind, tensor in self._live.items()}
        self._gradient_before: dict[str, Tensor] = {}
        self._scratch = {kind: torch.empty_like(tensor) for kind, tensor in self._before.items()}
        self.statistics = {kind: AlphaStatistics() for kind in self._live}

    @torch.no_grad()
    def update(self) -> dict[str, Tensor]:
        """Move theta* towards the live tensors; return the alphas used, one per layer, by kind."""
        alphas: dict[str, Tensor] = {}
        for kind, live in self._live.items():
            if live.grad is None:
                continue
            alpha, fallback = self._alpha(kind, live, live.grad)
            shaped = alpha.to(live.dtype).view(-1, *([1] * (live.dim() - 1)))
            self.served[kind].lerp_(live, shaped)
            self.statistics[kind].add(alpha, fallback)
            alphas[kind] = alpha
        return alphas

    def _alpha(self, kind: str, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        if self._mode in _CONSTANT:
            zero = torch.zeros(live.shape[0], device=live.device)
            return alpha_of(zero, zero, zero, zero, mode=self._mode)
        scratch, before = self._scratch[kind], self._before[kind]
        moved = _l1(torch.sub(live, before, out=scratch))
        lag = _l1(torch.sub(live, self.served[kind], out=scratch))
        before.copy_(live)
        earlier = self._gradient_before.get(kind)
        if earlier is None:
            change = torch.full_like(lag, float("nan"))
            self._gradient_before[kind] = gradient.detach().clone()
        else:
            change = _l1(torch.sub(gradient, earlier, out=scratch))
            earlier.copy_(gradient)
        return alpha_of(_l1(gradient), moved, lag, change, mode=self._mode)


def _l1(tensor: Tensor) -> Tensor:
    """Sum absolute values over everything but the first dimension: ``[L, ...] -> [L]``."""
    return torch.linalg.vector_norm(tensor.flatten(1), ord=1, dim=1)
