"""The pool that engines hold for a version, and the few coefficients that a request brings to it.

Up to a total rank of ``dense_rank`` it is the version's own pool, and c is exact (eq. 5). Beyond it each
task's context is folded (see ``folding``): the N increments are followed by those of the folds, and a request
brings

    c' = [a + the context of tasks that do not fold, the mass of a on task t for each increment of F_t]

of which the smallest are dropped. Engines see more increments of the same rank and no second mechanism.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adapter_store.folding import FOLD_ERROR, MOST_ROWS, Fold, fold_contexts, open_contexts
from adapter_store.routing import contextual, task_mass
from adapter_store.settings import DENSE_RANK
from adapter_store.state import AdapterState

DROPPED = 1e-3
"""Largest share of a request's weighed mass that is dropped."""


@dataclass(frozen=True, slots=True, eq=False)
class ServedPool:
    """Hold what serving a version needs beside its state.

    Attributes:
        state: the version as published, N increments.
        folds: the fold of each task that has one; empty for a pool that is computed whole.
        brought: ``[T, N']``, what a unit of intrinsic mass on a task brings beside itself; None in a pool
            that is computed whole.
        sizes: ``[N']``, the Frobenius norm of each increment over all linears.
        dropped: largest share of the weighed mass that is dropped.
    """

    state: AdapterState
    folds: Mapping[int, Fold] = dataclasses.field(default_factory=dict)
    brought: Tensor | None = None
    sizes: Tensor | None = None
    dropped: float = 0.0

    @property
    def rows(self) -> int:
        """Return N', the increments that an engine holds."""
        return self.state.rows + sum(fold.rows for fold in self.folds.values())

    def staged(self) -> AdapterState:
        """Return what an engine stages: the state, followed by the increments of the folds.

        Nothing routes with it: the folds' keys only repeat some of the state's.
        """
        if not self.folds:
            return self.state
        state, folds = self.state, self.folds
        extra = self.rows - state.rows
        owners = torch.tensor([task for task, fold in folds.items() for _ in range(fold.rows)])
        return dataclasses.replace(
            state,
            keys=torch.cat([state.keys, state.keys[:1].expand(extra, -1, -1)]),
            task_of=torch.cat([state.task_of, owners]),
            branch_of=torch.cat([state.branch_of, torch.zeros(extra, dtype=torch.int64)]),
            usage=torch.nn.functional.pad(state.usage, (0, extra)),
            down={
                name: torch.cat([down, *(fold.down[name] for fold in folds.values())], dim=1)
                for name, down in state.down.items()
            },
            up={
                name: torch.cat([up, *(fold.up[name] for fold in folds.values())], dim=1)
                for name, up in state.up.items()
            },
        )

    def coefficients(self, a: Tensor) -> Tensor:
        """Return the coefficients over this pool of requests with intrinsic coefficients ``a`` ``[B, N]``.

        With x the input of a linear, the output of eq. 6 differs from the exact one by at most
        ``error * sum_t mass_t |C_t| |x|`` for the folds, and for what is dropped, over all linears together,
        ``dropped * sum_n c'_n |B_n A_n| |x|`` (Frobenius norms, see ``drop_smallest``).

        Returns:
            ``[B, N']`` float32; exactly c in a pool that is computed whole.
        """
        if self.brought is None or self.sizes is None:
            return a + contextual(self.state, a)
        mass = task_mass(self.state, a)
        tasks = mass.any(dim=0).nonzero().flatten()
        wide = torch.nn.functional.pad(a, (0, self.brought.shape[1] - a.shape[1]))
        wide = wide + mass[:, tasks] @ self.brought[tasks.to(self.brought.device)].to(a.device)
        return drop_smallest(wide, self.sizes.to(a.device), self.dropped)


def open_pool(
    state: AdapterState,
    dense_rank: int = DENSE_RANK,
    *,
    error: float = FOLD_ERROR,
    most: int = MOST_ROWS,
    dropped: float = DROPPED,
) -> ServedPool:
    """Return the pool that serves a version.

    Args:
        state: the version's state, on the CPU.
        dense_rank: total rank up to which the pool stays as it is and c exact.
        error: largest relative error of a fold.
        most: increments that one fold may take.
        dropped: largest share of a request's weighed mass that is dropped.
    """
    if state.total_rank <= dense_rank:
        return ServedPool(state)
    tried = fold_contexts(state, error, most)
    folds = {task: fold for task, fold in tried.items() if fold is not None}
    brought = torch.zeros(len(state.tasks), state.rows + sum(fold.rows for fold in folds.values()))
    exact = [task for task, fold in tried.items() if fold is None]
    brought[exact, : state.rows] = open_contexts(state)[exact] @ state.usage
    start = state.rows
    for task, fold in folds.items():
        brought[task, start : start + fold.rows] = 1.0
        start += fold.rows
    sizes = torch.cat([sizes_of(state.down, state.up), *(sizes_of(f.down, f.up) for f in folds.values())])
    return ServedPool(state, folds, brought, sizes, dropped)


def sizes_of(down: Mapping[str, Tensor], up: Mapping[str, Tensor]) -> Tensor:
    """Return the Frobenius norm of each increment's ``B_n A_n`` over all linears together, ``[N]``.

    ``|B A|^2`` is the sum of ``(B^T B) * (A A^T)``, so no product of the sides is made.
    """
    squared = torch.zeros(next(iter(down.values())).shape[1], dtype=torch.float64)
    for name, stack in down.items():
        for a, b in zip(stack, up[name], strict=True):
            squared += ((b.transpose(1, 2) @ b) * (a @ a.transpose(1, 2))).sum(
                dim=(1, 2), dtype=torch.float64
            )
    return squared.clamp_min(0.0).sqrt().float()


def drop_smallest(c: Tensor, sizes: Tensor, share: float) -> Tensor:
    """Return coefficients without the smallest, weighed by the sizes of their increments.

    The increments with the least ``c_n |B_n A_n|`` are dropped as long as those of all dropped ones together
    stay within ``share`` of the sum over all. By the triangle inequality the matrix ``sum_n c_n B_n A_n``,
    over all linears together, changes by no more than that (Frobenius).

    Args:
        c: ``[B, N]`` nonnegative; each request is treated alone.
        sizes: ``[N]``, ``|B_n A_n|``.
        share: 0 drops only what does nothing.
    """
    columns = c.any(dim=0).nonzero().flatten()
    weighed = (c[:, columns] * sizes[columns]).double()
    order = weighed.sort(dim=1, stable=True)
    gone = order.values.cumsum(dim=1) <= share * weighed.sum(dim=1, keepdim=True)
    small = torch.zeros_like(gone).scatter(1, order.indices, gone)
    return c.index_copy(1, columns, c[:, columns].masked_fill(small, 0.0))
