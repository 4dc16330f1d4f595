"""Find the linears that versions adapt in vLLM's model and let the pool add to them, sharded as they are.

vLLM fuses some linears (``q_proj``, ``k_proj`` and ``v_proj`` into ``qkv_proj``, ``gate_proj`` and
``up_proj`` into ``gate_up_proj``) and splits them over ranks. A row-parallel linear sees a part of the
inputs: A is cut likewise and the addition happens before its all-reduce, so no further communication is
needed. A column-parallel one gives a part of the outputs: B is cut likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    QKVParallelLinear,
    RowParallelLinear,
)

from server.engine.vllm_plugin.pool import Factors, Pool

FUSED = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
"""Target -> the linear that vLLM makes of it, and its place there."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Say which part of a target's factors this rank holds: inputs (of A) and outputs (of B).

    ``columns`` are the outputs' places in the linear of this rank; None is all of them.
    """

    inputs: slice
    outputs: slice
    columns: slice | None


class PooledMethod(LinearMethodBase):
    """Run a linear as ``inner`` does, then let the pool add to its output."""

    def __init__(self, inner: Any, pool: Pool, parts: list[Factors]) -> None:
        super().__init__()
        self.inner, self.pool, self.parts = inner, pool, parts

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        """Create what the wrapped method creates."""
        self.inner.create_weights(*args, **kwargs)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Prepare the frozen weights as the wrapped method does."""
        self.inner.process_weights_after_loading(layer)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map ``[tokens, d_in]`` to ``[tokens, d_out]`` (eq. 6)."""
        y = self.inner.apply(layer, x, bias)
        for factors in self.parts:
            y = self.pool.add(y, x, factors)
        return y


@dataclass(slots=True, eq=False)
class Target:
    """Hold one target's increments here: ``down`` ``[L, banks, R, d_in]``, ``up`` ``[L, banks, R, d_out]``.

    ``shape`` is ``(L, d_in, d_out)`` of the whole linear, over all ranks; ``linears`` are views, by layer.
    """

    down: Tensor
    up: Tensor
    cut: Cut
    shape: tuple[int, int, int]
    linears: list[Factors] = field(default_factory=list)

    def grow(self, capacity: int) -> None:
        """Make room for a total rank of ``capacity`` while steps run.

        What a step reads is copied first and the same in both, so it may see either.
        """
        more = (0, 0, 0, capacity - self.down.shape[2])
        self.down, self.up = nn.functional.pad(self.down, more), nn.functional.pad(self.up, more)
        for layer, linear in enumerate(self.linears):
            linear.down, linear.up = self.down[layer], self.up[layer]


def adapt(layers: nn.ModuleList, targets: tuple[str, ...], first: int, pool: Pool) -> dict[str, Target]:
    """Let ``pool`` act on ``targets`` of all ``layers`` from ``first`` on; return the increments by target.

    Args:
        layers: the decoder layers of vLLM's language model.
        targets: last name of each linear, as in the checkpoint.
        first: the first layer that is adapted.
        pool: whose banks and gates are used.

    Raises:
        ValueError: a target is not a linear of every layer.
    """
    found: dict[str, Target] = {}
    parts: dict[LinearBase, list[Factors]] = {}
    for name in targets:
        linears = [_linear(layer, name) for layer in layers][first:]
        cut, shape = _cut(linears[0], name), (len(linears), *_sizes(linears[0], name))
        found[name] = target = _allocate(pool, cut, shape)
        for index, linear in enumerate(linears):
            factors = Factors(target.down[index], target.up[index], len(pool.linears), cut.columns)
            pool.linears.append(factors)
            target.linears.append(factors)
            parts.setdefault(linear, []).append(factors)
    for linear, own in parts.items():
        linear.quant_method = PooledMethod(linear.quant_method, pool, own)
    return found


def _allocate(pool: Pool, cut: Cut, shape: tuple[int, int, int]) -> Target:
    place: Mapping[str, Any] = {"dtype": pool.dtype, "device": pool.device}
    size = (shape[0], pool.banks, pool.capacity)
    down = torch.zeros(*size, cut.inputs.stop - cut.inputs.start, **place)
    up = torch.zeros(*size, cut.outputs.stop - cut.outputs.start, **place)
    return Target(down, up, cut, shape)


def _linear(layer: nn.Module, target: str) -> LinearBase:
    name, _ = FUSED.get(target, (target, 0))
    for path, module in layer.named_modules():
        if path.rpartition(".")[2] == name and isinstance(module, LinearBase):
            return module
    raise ValueError(f"{target!r} is not a linear of every layer of this model")


def _sizes(linear: Any, target: str) -> tuple[int, int]:
    """Return ``(d_in, d_out)`` of a target over all ranks, without the copies of key-value heads."""
    if target not in FUSED:
        return linear.input_size, linear.output_size
    if isinstance(linear, QKVParallelLinear):
        heads = linear.total_num_heads if target == "q_proj" else linear.total_num_kv_heads
        return linear.input_size, heads * (linear.v_head_size if target == "v_proj" else linear.head_size)
    return linear.input_size, linear.output_sizes[FUSED[target][1]]


def _cut(linear: Any, target: str) -> Cut:
    d_in, d_out = _sizes(linear, target)
    if isinstance(linear, RowParallelLinear):
        width = linear.input_size_per_partition
        return Cut(slice(linear.tp_rank * width, (linear.tp_rank + 1) * width), slice(0, d_out), None)
    everything = slice(0, d_in)
    if target not in FUSED:
        width = linear.output_size_per_partition
        return Cut(everything, slice(linear.tp_rank * width, (linear.tp_rank + 1) * width), None)
    sizes = linear.output_partition_sizes
    place = FUSED[target][1]
    begin, width = sum(sizes[:place]), sizes[place]
    rank = linear.tp_rank
    if isinstance(linear, QKVParallelLinear) and target != "q_proj":
        rank //= linear.num_kv_head_replicas
    return Cut(everything, slice(rank * width, (rank + 1) * width), slice(begin, begin + width))
