"""Requests to a large pool: which increments each touches, and the term that computes only those.

A pool no wider than ``dense_rank`` is computed whole for every token. From a wider one the touched increments
of a request are copied together when it enters (about 3 MB for 8 increments of rank 8 on ten linears of 576
by 576) and freed when it ends; requests that touch the same share the copy.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch

if TYPE_CHECKING:
    from adapter_store.gathering import Gathered, GatheredTerm
    from server.engine.banks import BankSlot
    from server.engine.sequence import Sequence

MOST_RANK = 512
"""The most that is copied for one request: 24 MB on ten linears of 576 by 576 in float32."""
_NARROWER = 8
"""A request is gathered only if it touches less than this part of the pool; else the whole is cheaper."""


def touched(
    slot: BankSlot, gate: torch.Tensor | None, dense_rank: int, most_rank: int = MOST_RANK
) -> tuple[int, ...] | None:
    """Return the increments that a request touches, if computing only those is cheaper; else None.

    Args:
        slot: the request's bank.
        gate: its coefficients by rank, ``[N * r]``, or None for the base.
        dense_rank: total rank up to which a pool is computed whole.
        most_rank: the most that is copied for one request.
    """
    if gate is None or len(gate) <= dense_rank:
        return None
    rows = gate[:: slot.rank].nonzero().flatten()
    if len(rows) * slot.rank > min(most_rank, len(gate) // _NARROWER):
        return None
    return tuple(rows.tolist())


def gate_of_rows(gate: torch.Tensor, rows: tuple[int, ...], rank: int) -> torch.Tensor:
    """Return the gate ``[k * r]`` of k increments out of that of the whole pool, ``[N * r]``."""
    return gate.view(-1, rank)[list(rows)].flatten()


class Gatherer:
    """Copy touched increments together, once for all requests that run with them; for the engine's thread."""

    def __init__(self, targets: tuple[str, ...]) -> None:
        self._targets = targets
        self._held: WeakValueDictionary[tuple[int, int, tuple[int, ...]], Gathered] = WeakValueDictionary()

    @property
    def nbytes(self) -> int:
        """Give the bytes of all copies that requests hold now."""
        return sum(gathered.nbytes for gathered in list(self._held.values()))

    def decode_term(self, rows: Rows[Sequence]) -> GatheredTerm | None:
        """Return the term of a decoding step, where row i has token i; None if nobody is gathered."""
        from adapter_store.gathering import GatheredTerm, Part

        groups: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            if row.rows is not None:
                groups.setdefault(id(self._of(row)), []).append(place)
        parts: list[Part] = []
        for places in groups.values():
            gathered, gates = self._of(rows[places[0]]), [_gate(rows[place]) for place in places]
            if len(places) == 1:
                parts.append(Part(gathered, places[0], gates[0]))
            else:
                index = torch.tensor(places, device=gathered.factors[0][0].device)
                parts.append(Part(gathered, index, torch.stack(gates)))
        return GatheredTerm(tuple(parts)) if parts else None

    def prefill_term(self, rows: Rows[Sequence], reach: torch.Tensor) -> GatheredTerm | None:
        """Return the term of a batch of prompt pieces; ``reach`` ``[P, width, 1]`` marks adapted tokens."""
        from adapter_store.gathering import GatheredTerm, Part

        width = reach.shape[1]
        parts = [
            Part(
                self._of(row),
                slice(place * width, (place + 1) * width),
                _gate(row).to(reach.device)[None] * reach[place],
            )
            for place, row in enumerate(rows)
            if row.rows is not None
        ]
        return GatheredTerm(tuple(parts)) if parts else None

    def _of(self, row: Sequence) -> Gathered:
        """Return a row's increments, copied at its first step; its lease keeps the bank as it is."""
        from adapter_store.gathering import Gathered

        if row.gathered is None:
            bank = row.lease.bank
            assert bank is not None
            assert row.rows is not None
            key = (id(row.lease), row.lease.fills, row.rows)
            row.gathered = self._held.get(key)
            if row.gathered is None:
                row.gathered = self._held[key] = Gathered.from_bank(bank, row.rows, self._targets)
        return row.gathered


def _gate(row: Sequence) -> torch.Tensor:
    assert row.gate is not None
    return row.gate
