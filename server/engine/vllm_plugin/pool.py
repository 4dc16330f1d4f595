"""The resident pool: stacked increments in banks, and which tokens of a step use which of them.

For every adapted linear, ``y += B_all (repeat(c, r) * (A_all x))`` (eq. 6), once per bank that a step uses.
A bank holds one version. Every token has a gate, ``repeat(c, r)`` of its request, from the request's first
adapted token on; tokens without one cost nothing.

In a graph (``torch.compile`` or CUDA graphs) shapes and addresses are fixed: there all banks are computed
for all tokens over one persistent gate buffer, whose zeros switch tokens off. A Python branch would be
frozen into the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adapter_store.gathering import ActiveParts, Gathered, Part


@dataclass(frozen=True, slots=True, eq=False)
class RequestGate:
    """Hold what a request brings: its bank, gate ``[width]`` and the position of its first adapted token.

    ``gathered`` holds the few increments of a large pool that the gate is for; None means the whole bank.
    """

    bank: int
    gate: Tensor
    start: int
    gathered: Gathered | None = None


@dataclass(slots=True, eq=False)
class Factors:
    """Hold one linear's increments in all banks: ``down`` ``[banks, R, d_in]``, ``up`` ``[banks, R, d_out]``.

    ``slot`` numbers the linears of a model; ``columns`` says which outputs of a fused one they act on, None
    all.
    """

    down: Tensor
    up: Tensor
    slot: int = 0
    columns: slice | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ActiveBank:
    """Say which tokens of a step use a bank: ``rows`` ``[m]`` (None: all) with ``gate`` ``[m, width]``."""

    bank: int
    width: int
    rows: Tensor | None
    gate: Tensor


@dataclass(slots=True, eq=False)
class Pool:
    """Know the gates of the step that runs now; shared by all adapted linears of one model.

    Attributes:
        banks: how many versions are resident.
        capacity: total rank R that a bank has room for; grows unless ``fixed``.
        fixed: compute as a graph must: every bank for every token.
        gates: ``[banks, tokens, R]``, written before each step; empty unless ``fixed``.
        linears: all adapted linears, by slot.
        fills: how often each bank was filled.
    """

    banks: int
    capacity: int
    max_tokens: int
    dtype: torch.dtype
    device: torch.device
    fixed: bool = False
    gates: Tensor = field(init=False)
    linears: list[Factors] = field(init=False, default_factory=list)
    fills: list[int] = field(init=False)
    active: list[ActiveBank] = field(init=False)
    parts: ActiveParts | None = field(init=False, default=None)
    _written: int = field(init=False, default=0)
    _gathered: WeakValueDictionary[tuple[int, int, tuple[int, ...]], Gathered] = field(
        init=False, default_factory=WeakValueDictionary
    )

    def __post_init__(self) -> None:
        size = (self.banks, self.max_tokens if self.fixed else 0, self.capacity)
        self.gates = torch.zeros(size, dtype=self.dtype, device=self.device)
        self.active = []
        self.fills = [0] * self.banks

    def gather(self, bank: int, rows: tuple[int, ...], rank: int) -> Gathered:
        """Return increments of a bank, copied once for all requests that touch the same ones."""
        key = (bank, self.fills[bank], rows)
        found = self._gathered.get(key)
        if found is None:
            linears = (
                (_by_increment(linear.down[bank], rank), _by_increment(linear.up[bank], rank))
                for linear in self.linears
            )
            found = self._gathered[key] = Gathered.copy(rows, linears)
        return found

    def begin_step(
        self, requests: Sequence[RequestGate | None], bounds: np.ndarray, positions: np.ndarray
    ) -> None:
        """Set the gates of the step to come.

        Args:
            requests: the n requests in the order of their tokens; None answers as the base.
            bounds: ``[n + 1]``, where each request's tokens begin and the last ones end.
            positions: ``[n]``, the position of each request's first token of this step.
        """
        self.end_step()
        whole = [None if request is None or request.gathered else request for request in requests]
        for bank in sorted({request.bank for request in whole if request is not None}):
            self._activate(bank, whole, bounds, positions)
        if any(request is not None and request.gathered for request in requests):
            self.parts = ActiveParts(_parts(requests, bounds, positions))
        if self.fixed:
            self._write(int(bounds[-1]))

    def end_step(self) -> None:
        """Forget the step, so that nothing that runs between steps is adapted."""
        self.active, self.parts = [], None
        if self.fixed and self._written:
            self._write(0)

    def add(self, y: Tensor, x: Tensor, factors: Factors) -> Tensor:
        """Return ``y`` with the increments' part added in place.

        Args:
            y: ``[tokens, d_out]``, the frozen linear's output.
            x: ``[tokens, d_in]``, its input.
            factors: the linear's increments.
        """
        part = y if factors.columns is None else y[:, factors.columns]
        if self.fixed:
            tokens = x.shape[0]
            for bank in range(self.banks):
                gate = self.gates[bank, :tokens]
                hidden = F.linear(x, factors.down[bank]) * gate
                hidden = torch.where(gate == 0, 0, hidden)  # what overflows for one version is no other's NaN
                part.addmm_(hidden, factors.up[bank])
            return y
        for active in self.active:
            down, up = factors.down[active.bank, : active.width], factors.up[active.bank, : active.width]
            if active.rows is None:
                part.addmm_(F.linear(x, down).mul_(active.gate), up)
            else:
                hidden = F.linear(x.index_select(0, active.rows), down).mul_(active.gate)
                part.index_add_(0, active.rows, hidden @ up)
        if self.parts is not None:
            self.parts.add(part, x, factors.slot)
        return y

    def _activate(
        self, bank: int, requests: Sequence[RequestGate | None], bounds: np.ndarray, positions: np.ndarray
    ) -> None:
        members = [i for i, request in enumerate(requests) if request is not None and request.bank == bank]
        gates = [request.gate for i in members if (request := requests[i]) is not None]
        starts = np.array([request.start for i in members if (request := requests[i]) is not None])
        first = np.maximum(bounds[members] + starts - positions[members], bounds[members])
        counts = np.maximum(bounds[np.array(members) + 1] - first, 0)
        total = int(counts.sum())
        if not total:
            return
        table = torch.stack(gates)
        if total == len(members) and counts.all():  # one token each: decoding
            rows, gate = first, table
        else:
            owner = np.repeat(np.arange(len(members)), counts)
            within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
            rows = first[owner] + within
            gate = table.index_select(0, torch.from_numpy(owner).to(self.device))
        everything = total == int(bounds[-1])
        index = None if everything else torch.from_numpy(rows.astype(np.int64)).to(self.device)
        self.active.append(ActiveBank(bank, table.shape[1], index, gate))

    def _write(self, tokens: int) -> None:
        """Bring the persistent buffer up to date; rows behind the step's tokens are padding and stay zero."""
        self.gates[:, : max(self._written, tokens)] = 0
        for active in self.active:
            target = self.gates[active.bank, :tokens, : active.width]
            if active.rows is None:
                target.copy_(active.gate)
            else:
                target.index_copy_(0, active.rows, active.gate)
        self._written = tokens


def _by_increment(side: Tensor, rank: int) -> Tensor:
    """Return ``[R, d]`` as ``[increments, rank, d]``; a bank's room need not be a multiple of the rank."""
    whole = len(side) // rank * rank
    return side[:whole].view(-1, rank, side.shape[-1])


def _parts(requests: Sequence[RequestGate | None], bounds: np.ndarray, positions: np.ndarray) -> list[Part]:
    """Return which tokens of a step use which gathered increments, decoding requests of the same together."""
    alone: dict[int, tuple[Gathered, list[int], list[Tensor]]] = {}
    parts: list[Part] = []
    for number, request in enumerate(requests):
        if request is None or request.gathered is None:
            continue
        begin, end = int(bounds[number]), int(bounds[number + 1])
        first = max(begin, begin + request.start - int(positions[number]))
        if end - first == 1:
            _, places, gates = alone.setdefault(id(request.gathered), (request.gathered, [], []))
            places.append(first)
            gates.append(request.gate)
        elif first < end:
            parts.append(Part(request.gathered, slice(first, end), request.gate[None]))
    for gathered, places, gates in alone.values():
        if len(places) == 1:
            parts.append(Part(gathered, places[0], gates[0]))
        else:
            parts.append(Part(gathered, torch.tensor(places, device=gates[0].device), torch.stack(gates)))
    return parts
