"""One pool of increments, stacked the way the products of eq. 6 read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapter_store.errors import StateInvalid
from adapter_store.state import AdapterState, Shape


def gate_of(c: Tensor, rank: int) -> Tensor:
    """Repeat each of N coefficients ``[..., N]`` over the ranks of its increment: ``[..., N * rank]``."""
    return c.repeat_interleave(rank, dim=-1)


class Bank:
    """Hold a pool of increments in the layout of the stacked products.

    Per target one stacked tensor each: ``down`` ``[L, n, r, d_in]`` and ``up`` ``[L, n, r, d_out]`` (both
    products read rows). Addresses never change: ``fill`` overwrites in place.
    """

    def __init__(self, down: dict[str, Tensor], up: dict[str, Tensor], rows: int) -> None:
        self.down = down
        self.up = up
        self._rows = rows
        self._views: tuple[tuple[str, ...], list[tuple[Tensor, Tensor]]] | None = None

    @classmethod
    def allocate(
        cls,
        shapes: Mapping[str, Shape],
        rows_capacity: int,
        rank: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bank:
        """Return an empty bank with room for ``rows_capacity`` increments of ``rank``, to be filled later.

        Args:
            shapes: ``(layers, d_in, d_out)`` per target.
            rows_capacity: the most increments it will hold.
            rank: r of every increment.
            dtype: dtype of the model.
            device: device of the model.
        """
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        down = {
            name: torch.zeros(size[0], rows_capacity, rank, size[1], **place) for name, size in shapes.items()
        }
        up = {
            name: torch.zeros(size[0], rows_capacity, rank, size[2], **place) for name, size in shapes.items()
        }
        return cls(down, up, rows=0)

    @classmethod
    def from_state(
        cls,
        state: AdapterState,
        rows: Sequence[int] | Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        trainable: bool = False,
    ) -> Bank:
        """Return a bank that holds a copy of a state's increments.

        Args:
            state: where the values come from.
            rows: indices of the increments to take; None takes all.
            dtype: dtype of the copy; a trained bank should be float32.
            device: where the copy lies.
            trainable: make every stacked tensor an ``nn.Parameter``.
        """
        index = None if rows is None else torch.as_tensor(rows, dtype=torch.int64)
        count = state.rows if index is None else len(index)
        bank = cls.allocate(state.shapes, count, state.rank, dtype, device)
        bank._copy(state, index)
        if trainable:
            bank.down = {name: nn.Parameter(tensor) for name, tensor in bank.down.items()}
            bank.up = {name: nn.Parameter(tensor) for name, tensor in bank.up.items()}
        return bank

    @property
    def rows(self) -> int:
        """Return how many increments are in use."""
        return self._rows

    @property
    def capacity(self) -> int:
        """Return how many increments fit."""
        return next(iter(self.down.values())).shape[1]

    @property
    def rank(self) -> int:
        """Return r."""
        return next(iter(self.down.values())).shape[2]

    @property
    def width(self) -> int:
        """Return the gate's width, rows times rank."""
        return self._rows * self.rank

    @property
    def nbytes(self) -> int:
        """Return the size of the stacked tensors in bytes."""
        return sum(tensor.nbytes for tensor in (*self.down.values(), *self.up.values()))

    def fill(self, state: AdapterState) -> None:
        """Overwrite the bank with all increments of ``state``; raise StateInvalid if they do not fit."""
        sizes = {name: (*tensor.shape[::3], self.up[name].shape[3]) for name, tensor in self.down.items()}
        if state.shapes != sizes or state.rank != self.rank:
            raise StateInvalid(
                f"the state adapts {state.shapes} at rank {state.rank}, this bank {sizes} at rank {self.rank}"
            )
        if state.rows > self.capacity:
            raise StateInvalid(
                f"the state has {state.rows} increments, the bank has room for {self.capacity}"
            )
        self._copy(state, None)

    def named_tensors(self) -> dict[str, Tensor]:
        """Return the stacked tensors by name, ``down.<target>`` and ``up.<target>``."""
        named = {f"down.{name}": tensor for name, tensor in self.down.items()}
        return named | {f"up.{name}": tensor for name, tensor in self.up.items()}

    def state_layout(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return copies ``(down, up)`` of the rows in use as a state holds them, float32 on the CPU."""
        down = {name: _kept(tensor[:, : self._rows]) for name, tensor in self.down.items()}
        up = {name: _kept(tensor[:, : self._rows].transpose(2, 3)) for name, tensor in self.up.items()}
        return down, up

    def factors(self, targets: Sequence[str], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Return ``(A [R, d_in], B^T [R, d_out])`` of every layer of every target in turn.

        They are views of the stacked tensors (cast if ``dtype`` is another); gradients flow through them.
        """
        first = self.down[targets[0]]
        fixed = not first.requires_grad and first.dtype == dtype
        if fixed and self._views is not None and self._views[0] == tuple(targets):
            return self._views[1]
        pairs = [pair for target in targets for pair in self._layers(target, dtype)]
        self._views = (tuple(targets), pairs) if fixed else None
        return pairs

    def _layers(self, target: str, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        # One unbind, not L selects: its backward is one stack instead of L zero-filled tensors.
        down, up = (
            stack[:, : self._rows].flatten(1, 2).to(dtype).unbind(0)
            for stack in (self.down[target], self.up[target])
        )
        return list(zip(down, up, strict=True))

    @torch.no_grad()
    def _copy(self, state: AdapterState, index: Tensor | None) -> None:
        count = state.rows if index is None else len(index)
        for name in state.targets:
            down, up = state.down[name], state.up[name]
            if index is not None:
                down, up = down[:, index], up[:, index]
            self.down[name][:, :count].copy_(down)
            self.up[name][:, :count].copy_(up.transpose(2, 3))
        self._rows = count
        self._views = None


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
