"""Make small matrix products fast on a CPU, without another copy of the weights.

For a handful of rows the BLAS kernel behind ``x @ W.T`` packs the whole weight at every call. ``(W @ x.T).T``
is the same product, packs only ``x``, and took less than half the time for 8 to 48 rows on the machine it was
measured on.
"""

from __future__ import annotations

import types

import torch
from torch import nn
from torch.nn import functional

MIN_ROWS, MAX_ROWS = 4, 160


def _forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    rows = x.numel() // x.shape[-1]
    if rows < MIN_ROWS or rows > MAX_ROWS or self.bias is not None:
        return functional.linear(x, self.weight, self.bias)
    return torch.mm(self.weight, x.reshape(rows, -1).t()).t().view(*x.shape[:-1], -1)


def swap_products(module: nn.Module) -> int:
    """Let every bias-free float32 CPU linear in ``module`` compute ``(W @ x.T).T`` when ``x`` has few rows.

    Returns:
        How many linears were changed; weights and module classes stay as they are.
    """
    changed = 0
    for layer in module.modules():
        if type(layer) is not nn.Linear or layer.bias is not None or "forward" in vars(layer):
            continue
        if layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32:
            layer.forward = types.MethodType(_forward, layer)
            changed += 1
    return changed
