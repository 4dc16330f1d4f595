"""Count multiply-adds: what a token of the base costs, and what increments must add."""

from __future__ import annotations

from typing import Any

from torch import nn

from adapter_store.state import Shape


def base_multiply_adds(model: Any) -> int:
    """Return the multiply-adds of one token through a LLaVA's language model, attention scores apart."""
    linears = [module for module in model.model.language_model.modules() if isinstance(module, nn.Linear)]
    return sum(linear.in_features * linear.out_features for linear in (*linears, model.lm_head))


def pool_multiply_adds(shapes: dict[str, Shape], total_rank: int) -> int:
    """Return what a pool adds to one token (eq. 6); ``shapes`` has ``(layers, d_in, d_out)`` per target."""
    return total_rank * sum(layers * (d_in + d_out) for layers, d_in, d_out in shapes.values())


def floor_ratio(model: Any, shapes: dict[str, Shape], total_rank: int) -> float:
    """Return the best tokens/s with a pool over tokens/s of the base, if only multiply-adds cost time."""
    base = base_multiply_adds(model)
    return base / (base + pool_multiply_adds(shapes, total_rank))
