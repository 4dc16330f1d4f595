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

**Cost.** A task with k ranks of earlier increments in its context costs a few products of k with the sides of
each linear; no matrix ``d_out x d_in`` is ever whole. 512 tasks of 64 ranks, each open to up to five earlier
ones, on ten linears of 576 by 576: 32 seconds on one core and 1.2 GB for the folds; the next version folds
its new task only. A context open to all of hundreds of tasks is given up after one linear.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
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
_CHUNK_COLUMNS = 128
_HOPELESS = 0.5
"""A sketch that holds less than this share of the estimated whole is given up without the exact error."""


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

    def add(self, found: tuple[Tensor, Tensor, float] | None) -> None:
        """Take over one linear's factors ``(A, B, error)``, or fail."""
        if found is None:
            self.failed, self.factors = True, []
            return
        self.factors.append(found[:2])
        self.rank, self.error = max(self.rank, len(found[0])), max(self.error, found[2])


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
    found.update(_fold_all(state, weights, missing, error, most))
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
def _fold_all(
    state: AdapterState, weights: Tensor, tasks: list[int], error: float, most: int
) -> dict[int, Fold | None]:
    """Fold tasks, linear after linear."""
    drafts = {task: _Draft() for task in tasks}
    for target in state.targets:
        for down, up in zip(state.down[target], state.up[target], strict=True) if tasks else ():
            halves = _halves(down, up, state.usage)
            limit = min(most * state.rank, up.shape[1], down.shape[2])
            for task, draft in drafts.items():
                if not draft.failed:
                    left, right = _context(halves, weights[task])
                    expected = max(draft.rank, _FIRST_ROWS * state.rank)
                    draft.add(_truncated(left, right, error, min(expected, limit), limit))
    return {task: _fold_of(state, draft) for task, draft in drafts.items()}


def _halves(down: Tensor, up: Tensor, usage: Tensor) -> list[tuple[Tensor, Tensor] | None]:
    """Return ``(left [d_out, n * r], right [n * r, d_in])`` with ``U_l = left @ right`` of every task."""
    halves: list[tuple[Tensor, Tensor] | None] = []
    for row in usage:
        used = row.nonzero().flatten()
        left = (up[used] * row[used, None, None]).transpose(0, 1).flatten(1)
        halves.append((left, down[used].flatten(0, 1)) if len(used) else None)
    return halves


def _context(halves: list[tuple[Tensor, Tensor] | None], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(left [d_out, k], right [k, d_in])`` with ``C_t = left @ right``."""
    parts = [(half, float(weights[task])) for task in weights.nonzero().flatten() if (half := halves[task])]
    return torch.cat([half[0] * weight for half, weight in parts], dim=1), torch.cat(
        [half[1] for half, _ in parts]
    )


def _truncated(
    left: Tensor, right: Tensor, error: float, expected: int, limit: int
) -> tuple[Tensor, Tensor, float] | None:
    """Return ``(A [k, d_in], B [d_out, k], error)`` of the least rank k whose error is within the bound.

    A sketch for the expected rank is tried before that for the limit.

    Returns:
        None if ``limit`` ranks are not enough.
    """
    squared: float | None = None
    generator = torch.Generator().manual_seed(0)
    for rank in sorted({expected, limit}):
        width = min(rank + _OVERSAMPLED, left.shape[0], right.shape[1])
        sketch = left @ (right @ torch.randn(right.shape[1], width, generator=generator))
        basis = torch.linalg.qr(sketch).Q
        inner = (basis.T @ left) @ right
        values, vectors = torch.linalg.eigh(inner.double() @ inner.double().T)
        values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1).float()
        if float(values.sum()) < _HOPELESS * float(sketch.double().square().sum()) / width:
            continue  # the sketch is an estimate of the whole: the exact norm would cost more
        squared = _squared_norm(left, right) if squared is None else squared
        cut = (squared - torch.nn.functional.pad(values.cumsum(0), (1, 0))).clamp_min(0.0)
        enough = (cut <= error**2 * squared).nonzero()
        if not len(enough) or int(enough[0]) > limit:
            continue
        kept = int(enough[0])
        scale = values[:kept].float().clamp_min(1e-30).pow(0.25)[:, None]
        chosen = vectors[:, :kept]
        reached = math.sqrt(float(cut[kept]) / squared) if squared else 0.0
        return (chosen.T @ inner) / scale, (basis @ chosen) * scale.T, reached
    return None


def _squared_norm(left: Tensor, right: Tensor) -> float:
    """Return ``|left @ right|^2`` without making the product whole."""
    if left.shape[1] < min(left.shape[0], right.shape[1]):
        return float(((left.T @ left).double() * (right @ right.T).double()).sum())
    return sum(float((left @ part).double().square().sum()) for part in right.split(_CHUNK_COLUMNS, dim=1))


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
