"""AdamW for stacked tensors ``[L, ...]`` with a learning rate of their own for every layer.

Adam's step has the same size everywhere, but layers differ: the residual stream grows from layer to layer, so
one rate is far too large for the first layers and too small for the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class _Moments:
    first: Tensor
    second: Tensor
    scratch: Tensor


class LayerwiseAdamW:
    """Step stacked tensors; ``rates`` gives each tensor's peak rate as a scalar or ``[L]``."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        rates: Mapping[str, Tensor | float],
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        self._tensors = dict(tensors)
        self._rates = {name: _shaped(rates[name], tensor) for name, tensor in tensors.items()}
        self._betas = betas
        self._weight_decay = weight_decay
        self._eps = eps
        self._steps = 0
        self._moments = {
            name: _Moments(*(torch.zeros_like(tensor, requires_grad=False) for _ in range(3)))
            for name, tensor in tensors.items()
        }

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for tensor in self._tensors.values():
            tensor.grad = None

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Take one step at ``factor`` times the peak rates; tensors without a gradient stay."""
        self._steps += 1
        first, second = self._betas
        correction = (1 - second**self._steps) ** 0.5 / (1 - first**self._steps)
        for name, tensor in self._tensors.items():
            gradient = tensor.grad
            if gradient is None:
                continue
            held = self._moments[name]
            held.first.lerp_(gradient, 1 - first)
            held.second.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            torch.sqrt(held.second, out=held.scratch).add_(self._eps)
            torch.div(held.first, held.scratch, out=held.scratch)
            rate = self._rates[name] * factor
            if self._weight_decay:
                tensor.mul_(1 - rate * self._weight_decay)
            tensor.sub_(held.scratch.mul_(rate * correction))


def _shaped(rate: Tensor | float, tensor: Tensor) -> Tensor:
    values = torch.as_tensor(rate, dtype=torch.float32, device=tensor.device)
    return values.view(-1, *([1] * (tensor.dim() - 1))) if values.dim() else values
