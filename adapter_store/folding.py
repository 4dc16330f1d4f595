"""Fold what earlier tasks bring to a finished task into a few increments of its own.

The contextual part of a request (eq. 4) is dense over all earlier tasks, but a finished task t brings the
same one always: ``K_t = sum over l < t of sigmoid(w[t, l]) u[l]``, so at each adapted linear the matrix

    C_t = sum_n K_t[n] B_n A_n = sum over l < t of sigmoid(w[t, l]) U_l,    U_l = sum_n u[l, n] B_n A_n

is constant. A fold is ``F_t``, a truncated singular value decomposition of it, as f increments of rank r. Its
error is exact, not estimated: with Q an orthonormal range of a sketch of C_t and ``Z = Q^T C_t``, what is cut
off has the squared Frobenius norm ``|C_t|^2 - sum of the kept squared singular values of Z``.

**Bound.** At every linear ``|C_t - F_t| <= error * |C_t|`` (Frobenius), so for an input x the output of eq. 6
moves by at most ``error * |C_t| * |x|`` per unit of mass on task t. A task that needs more than ``most``
increments for that is not folded.

**Cost.** The matrices U_l of all tasks are built a few columns at a time and mixed by one product, so memory
stays at some hundred MB and no task's matrix is ever whole.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from adapter_store.state import AdapterState

FOLD_ERROR = 0.01
"""Largest relative error of a fold at any linear."""
MOST_ROWS = 16
"""Increments that the fold of one task may take."""
CLOSED = 1e-9
"""Weight of an earlier task below which it is no part of a context; closed ones are at 1e-13."""
_FIRST_ROWS = 4
_OVERSAMPLED = 16
_BLOCK_TASKS = 128
_CHUNK_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Fold:
    """Stand for one task's context.

    Attributes:
        rows: f, the increments it takes.
        error: largest relative Frobenius error over the adapted linears.
        down: per target ``[L, f, r, d_in]``.
        up: per target ``[L, f, d_out, r]``.
    """

    rows: int
    error: float
    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Return the size of the factors in bytes."""
        return sum(tensor.nbytes for tensor in (*self.down.values(), *self.up.values()))


@dataclass(slots=True)
class _Draft:
    """Collect one task's factors, linear after linear; ``failed`` once one of them needs too many rows."""

    error: float = 0.0
    rank: int = 0
    failed: bool = False
    factors: list[tuple[Tensor, Tensor]] = field(default_factory=list)


_KNOWN: WeakValueDictionary[bytes, Fold] = WeakValueDictionary()
"""Folds that a version in this process still holds, by what they were made from."""


def open_contexts(state: AdapterState) -> Tensor:
    """Return ``sigmoid(w)`` of earlier tasks ``[T, T]``, with zeros for those that are closed."""
    weights = torch.sigmoid(state.context).tril(-1)
    return torch.where(weights > CLOSED, weights, torch.zeros(()))


def fold_contexts(
    state: AdapterState, error: float = FOLD_ERROR, most: int = MOST_ROWS
) -> dict[int, Fold | None]:
    """Return the fold of every task that has a context, None where it does not fold within the bound.

    A task whose context is unchanged since another version that is still held takes that version's fold.

    Args:
        state: its contexts and usages are final, as those of a published version are.
        error: largest relative Frobenius error at any linear.
        most: increments that one fold may take.
    """
    weights = open_contexts(state)
    owners = [task for task in range(len(state.tasks)) if bool((weights[task] @ state.usage).any())]
    names = _digests(state, weights, owners, f"{error}|{most}|{state.rank}|{state.shapes}")
    found: dict[int, Fold | None] = {task: _KNOWN.get(names[task]) for task in owners}
    missing = [task for task in owners if found[task] is None]
    tried = 0
    for rows in sorted({min(_FIRST_ROWS, most), most}):
        if rows > tried:
            for start in range(0, len(missing), _BLOCK_TASKS):
                block = missing[start : start + _BLOCK_TASKS]
                found.update(_fold_block(state, weights, block, error, rows))
            missing = [task for task in missing if found[task] is None]
            tried = rows
    for task, fold in found.items():
        if fold is not None:
            _KNOWN[names[task]] = fold
    return found


def _digests(state: AdapterState, weights: Tensor, owners: list[int], settings: str) -> dict[int, bytes]:
    """Return a digest of all that each task's context is made of."""
    bodies: dict[int, bytes] = {}
    for task in (weights[owners] > 0).any(dim=0).nonzero().flatten().tolist() if owners else ():
        rows = state.usage[task].nonzero().flatten()
        digest = hashlib.sha256(state.usage[task, rows].numpy().tobytes())
        for target in state.targets:
            for tensor in (state.down[target], state.up[target]):
                digest.update(tensor[:, rows].numpy().tobytes())
        bodies[task] = digest.digest()
    names: dict[int, bytes] = {}
    for task in owners:
        digest = hashlib.sha256(settings.encode())
        for earlier in weights[task].nonzero().flatten().tolist():
            digest.update(bodies[earlier] + weights[task, earlier].numpy().tobytes())
        names[task] = digest.digest()
    return names


@torch.no_grad()
def _fold_block(
    state: AdapterState, weights: Tensor, tasks: list[int], error: float, most: int
) -> dict[int, Fold | None]:
    """Fold a block of tasks, linear after linear."""
    drafts = [_Draft() for _ in tasks]
    for target in state.targets:
        for layer in range(state.down[target].shape[0]):
            pool = _Pool(state.down[target][layer], state.up[target][layer], state.usage)
            limit = min(most * state.rank, *pool.sides)
            _fold_linear(pool, weights[tasks], drafts, error, limit)
    return {task: _fold_of(state, draft) for task, draft in zip(tasks, drafts, strict=True)}


class _Pool:
    """Hold one linear's increments ``[N, r, d_in]`` and ``[N, d_out, r]``, and what tasks use of them."""

    def __init__(self, down: Tensor, up: Tensor, usage: Tensor) -> None:
        self.sides = (up.shape[1], down.shape[2])
        self._factors: list[tuple[Tensor, Tensor] | None] = []
        for row in usage:
            used = row.nonzero().flatten()
            left = (up[used] * row[used, None, None]).transpose(0, 1).flatten(1)
            self._factors.append((left, down[used].flatten(0, 1)) if len(used) else None)

    def times(self, right: Tensor) -> Tensor:
        """Return ``U_l @ right`` of every task, ``[T, d_out, n]``, for ``right`` ``[d_in, n]``."""
        out = torch.zeros(len(self._factors), self.sides[0], right.shape[1])
        for place, factors in enumerate(self._factors):
            if factors is not None:
                torch.mm(factors[0], factors[1] @ right, out=out[place])
        return out

    def columns(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield ranges of columns with those of every U_l, ``[T, d_out, n]``, bounded in bytes."""
        width = max(1, _CHUNK_BYTES // (4 * self.sides[0] * max(len(self._factors), 1)))
        for start in range(0, self.sides[1], width):
            part = slice(start, min(start + width, self.sides[1]))
            out = torch.zeros(len(self._factors), self.sides[0], part.stop - part.start)
            for place, factors in enumerate(self._factors):
                if factors is not None:
                    torch.mm(factors[0], factors[1][:, part], out=out[place])
            yield part, out


def _mixed(weights: Tensor, matrices: Tensor) -> Tensor:
    """Return ``sum_l weights[s, l] matrices[l]``, ``[S, d_out, n]``."""
    return (weights @ matrices.flatten(1)).view(len(weights), *matrices.shape[1:])


def _fold_linear(pool: _Pool, weights: Tensor, drafts: list[_Draft], error: float, limit: int) -> None:
    """Add one linear's factors to the drafts that can still succeed."""
    alive = [place for place, draft in enumerate(drafts) if not draft.failed]
    if not alive:
        return
    weights = weights[alive]
    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn(pool.sides[1], min(limit + _OVERSAMPLED, *pool.sides), generator=generator)
    basis = torch.linalg.qr(_mixed(weights, pool.times(sketch))).Q
    inner = torch.empty(len(alive), basis.shape[2], pool.sides[1])
    squared = torch.zeros(len(alive), dtype=torch.float64)
    for part, matrices in pool.columns():
        context = _mixed(weights, matrices)
        inner[:, :, part] = basis.transpose(1, 2) @ context
        squared += torch.linalg.vector_norm(context.flatten(1), dim=1, dtype=torch.float64).square()
    values, vectors = torch.linalg.eigh(inner.double() @ inner.double().transpose(1, 2))
    values, vectors = values.flip(1).clamp_min(0.0), vectors.flip(2).float()
    left = (squared[:, None] - torch.nn.functional.pad(values.cumsum(1), (1, 0))).clamp_min(0.0)
    errors = torch.where(squared[:, None] > 0, (left / squared[:, None]).sqrt(), torch.zeros_like(left))
    for index, place in enumerate(alive):
        draft, enough = drafts[place], (errors[index] <= error).nonzero()
        rank = int(enough[0]) if len(enough) else limit + 1
        if rank > limit:
            draft.failed, draft.factors = True, []
            continue
        draft.rank, draft.error = max(draft.rank, rank), max(draft.error, float(errors[index, rank]))
        chosen, scale = vectors[index, :, :rank], values[index, :rank].clamp_min(1e-30).float().pow(0.25)
        draft.factors.append(((chosen.T @ inner[index]) / scale[:, None], (basis[index] @ chosen) * scale))


def _fold_of(state: AdapterState, draft: _Draft) -> Fold | None:
    """Return a finished draft as increments of rank r, the same number at every linear."""
    if draft.failed:
        return None
    rows = math.ceil(draft.rank / state.rank)
    down, up = {}, {}
    factors = iter(draft.factors)
    for name, (layers, d_in, d_out) in state.shapes.items():
        wide_down, wide_up = (
            torch.zeros(layers, rows * state.rank, d_in),
            torch.zeros(layers, d_out, rows * state.rank),
        )
        for layer in range(layers):
            small_down, small_up = next(factors)
            wide_down[layer, : len(small_down)] = small_down
            wide_up[layer, :, : len(small_down)] = small_up
        down[name] = wide_down.view(layers, rows, state.rank, d_in)
        up[name] = wide_up.view(layers, d_out, rows, state.rank).transpose(1, 2).contiguous()
    return Fold(rows, draft.error, down, up)
