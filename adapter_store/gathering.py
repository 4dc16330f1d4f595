"""A few increments of a large pool, copied together, and how they act on the tokens that asked for them.

A stacked product (eq. 6) costs as much as the pool is wide. A request touches a few increments: copied into
one piece once, they cost what they are wide, whatever the pool holds. Requests that touch the same increments
share the copy and its products.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter_store.bank import Bank
from adapter_store.errors import StateInvalid


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Gathered:
    """Hold increments of a bank as products read them.

    Attributes:
        rows: which increments of the bank, k of them.
        factors: ``(A [k * r, d_in], B^T [k * r, d_out])`` of every layer of every target in turn.
    """

    rows: tuple[int, ...]
    factors: list[tuple[Tensor, Tensor]]

    @classmethod
    def copy(cls, rows: Sequence[int], linears: Iterable[tuple[Tensor, Tensor]]) -> Gathered:
        """Copy increments, in the order given, of every linear's ``(A [N, r, d_in], B^T [N, r, d_out])``."""
        factors: list[tuple[Tensor, Tensor]] = []
        for down, up in linears:
            index = torch.tensor(rows, dtype=torch.int64, device=down.device)
            picked = (side.detach().index_select(0, index).flatten(0, 1) for side in (down, up))
            factors.append((next(picked), next(picked)))
        return cls(tuple(rows), factors)

    @classmethod
    def from_bank(cls, bank: Bank, rows: Sequence[int], targets: Sequence[str]) -> Gathered:
        """Copy ``rows`` of ``bank``, in the order given, for ``targets``."""
        layers = (zip(bank.down[target], bank.up[target], strict=True) for target in targets)
        return cls.copy(rows, chain.from_iterable(layers))

    @property
    def width(self) -> int:
        """Return k * r, the gate's width."""
        return len(self.factors[0][0])

    @property
    def nbytes(self) -> int:
        """Return the size of the copy in bytes."""
        return sum(down.nbytes + up.nbytes for down, up in self.factors)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Say which tokens of a forward pass some gathered increments act on.

    Attributes:
        gathered: the increments.
        tokens: one token's place among all tokens of the pass, a range of places, or an index ``[n]`` int64.
        gate: ``[k * r]`` for one token, else ``[n, k * r]``, a coefficient for each rank.
    """

    gathered: Gathered
    tokens: int | slice | Tensor
    gate: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class GatheredTerm:
    """Let gathered increments act, each part on its own tokens; for inference only."""

    parts: tuple[Part, ...]

    def prepare(self, dtype: torch.dtype, device: torch.device, slots: int) -> ActiveParts:
        """Return the term ready for use; raise StateInvalid if a gate or a number of layers does not fit."""
        ready: list[Part] = []
        for part in self.parts:
            if part.gate.shape[-1] != part.gathered.width or len(part.gathered.factors) != slots:
                raise StateInvalid(
                    f"the gate is {list(part.gate.shape)} over {len(part.gathered.factors)} linears,"
                    f" not {part.gathered.width} wide over {slots}"
                )
            ready.append(Part(part.gathered, part.tokens, part.gate.to(device, dtype)))
        return ActiveParts(ready)


class ActiveParts:
    """Add the parts to an adapted linear's output, in place.

    One token takes two matrix-vector products: on a CPU they run at the speed of memory, where a batched
    product of such shapes takes twice as long.
    """

    __slots__ = ("_many", "_single")

    def __init__(self, parts: Sequence[Part]) -> None:
        self._single = [(part.tokens, part) for part in parts if isinstance(part.tokens, int)]
        self._many = [(part.tokens, part) for part in parts if not isinstance(part.tokens, int)]

    def add(self, y: Tensor, x: Tensor, slot: int) -> Tensor:
        """Return ``y`` ``[..., d_out]`` plus ``((x A^T) * gate) B^T`` of each part, ``x`` ``[..., d_in]``."""
        inputs, outputs = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for place, part in self._single:
            down, up = part.gathered.factors[slot]
            hidden = torch.mv(down, inputs[place]).mul_(part.gate)
            outputs[place].addmv_(up.t(), hidden)
        for tokens, part in self._many:
            down, up = part.gathered.factors[slot]
            hidden = F.linear(inputs[tokens], down).mul_(part.gate)
            if isinstance(tokens, slice):
                outputs[tokens].addmm_(hidden, up)
            else:
                outputs.index_add_(0, tokens, hidden @ up)
        return y
