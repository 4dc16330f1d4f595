"""What one adapter version holds: the pool of increments, what routes to them, and nothing of the base.

======================  =====================  ==========================================================
field                   shape                  meaning
======================  =====================  ==========================================================
``keys``                ``[N, k, q]`` float32  unit rows: the k directions that an increment answers to
``task_of``             ``[N]`` int64          the task an increment was created for
``branch_of``           ``[N]`` int64          its branch of that task; 0 is what the task began with
``down[target]``        ``[L, N, r, d_in]``    A, down projections of every layer
``up[target]``          ``[L, N, d_out, r]``   B, up projections of every layer; zero in a new increment
``usage``               ``[T, N]`` float32     mean intrinsic coefficient of each increment over a task
``context``             ``[T, T]`` float32     strictly lower triangular logits between tasks
``centroids``           ``[C, q]`` float32     centers of the tasks' queries, for retrain or expand
``centroid_task``       ``[C]`` int64          the task of each centroid
======================  =====================  ==========================================================

An increment is as near to a query as the nearest of its keys; one with fewer than k repeats its first.
A state is a value: every change returns a new one, and whatever a change does not name is carried over byte
for byte. On disk it is ``state.safetensors`` (tensors) beside ``state.json`` (everything else).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from adapter_store.errors import NotFoundError, StateInvalid
from adapter_store.names import check_task_name

Span = Literal["after_image", "all"]
RoutingMode = Literal["text", "text+image"]
Shape = tuple[int, int, int]
ROWS_PER_TASK = 8
CLOSED_CONTEXT = -30.0
"""A contextual logit whose sigmoid is 1e-13: earlier tasks have no part in a new one."""


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """Say how a request finds its increments.

    Attributes:
        mode: what a query is made of (eq. 1): the text alone, or the text and the pooled picture.
        top_m: how many increments answer a request (eq. 2).
        tau: below this best cosine the plain base answers (eq. 5); 0 never refuses a positive cosine.
        text_weight: share of the text in the cosine, with ``mode="text+image"``.
        image_weight: share of the picture in the cosine.
    """

    mode: RoutingMode = "text"
    top_m: int = 4
    tau: float = 0.0
    text_weight: float = 0.5
    image_weight: float = 0.5

    def __post_init__(self) -> None:
        if self.mode not in get_args(RoutingMode):
            raise StateInvalid(f"routing mode {self.mode!r} is unknown: use text or text+image")
        if not 1 <= self.top_m <= 1024:
            raise StateInvalid(f"top_m is {self.top_m}: use 1 to 1024")
        if not -1.0 <= self.tau <= 1.0:
            raise StateInvalid(f"tau is {self.tau}: a cosine lies between -1 and 1")
        weights = (self.text_weight, self.image_weight)
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) <= 0:
            raise StateInvalid(f"routing weights are {weights}: use finite values >= 0, not both 0")


@dataclass(frozen=True, slots=True, eq=False)
class AdapterState:
    """Hold everything of one version; see the module's table for the tensors."""

    base_digest: str
    targets: tuple[str, ...]
    rank: int
    span: Span
    routing: RoutingSettings
    tasks: tuple[str, ...]
    keys: Tensor
    task_of: Tensor
    branch_of: Tensor
    usage: Tensor
    context: Tensor
    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]
    centroids: Tensor
    centroid_task: Tensor

    @classmethod
    def empty(
        cls,
        base_digest: str,
        shapes: Mapping[str, Shape],
        query_width: int,
        rank: int = 8,
        span: Span = "after_image",
        routing: RoutingSettings | None = None,
    ) -> AdapterState:
        """Return the state of an untouched base: no task, no increment.

        Args:
            base_digest: the base this state is for.
            shapes: ``(layers, d_in, d_out)`` of every target linear.
            query_width: width q of a query (see ``query_width`` in ``queries``).
            rank: r of every increment.
            span: which tokens increments act on.
            routing: how requests find increments.
        """
        state = cls(
            base_digest=base_digest,
            targets=tuple(shapes),
            rank=rank,
            span=span,
            routing=routing or RoutingSettings(),
            tasks=(),
            keys=torch.zeros(0, 1, query_width),
            task_of=torch.zeros(0, dtype=torch.int64),
            branch_of=torch.zeros(0, dtype=torch.int64),
            usage=torch.zeros(0, 0),
            context=torch.zeros(0, 0),
            down={name: torch.zeros(layers, 0, rank, d_in) for name, (layers, d_in, _) in shapes.items()},
            up={name: torch.zeros(layers, 0, d_out, rank) for name, (layers, _, d_out) in shapes.items()},
            centroids=torch.zeros(0, query_width),
            centroid_task=torch.zeros(0, dtype=torch.int64),
        )
        return state.validate()

    @property
    def rows(self) -> int:
        """Return N, the number of increments."""
        return self.keys.shape[0]

    @property
    def total_rank(self) -> int:
        """Return R = N * r, the width of the stacked products (eq. 6)."""
        return self.rows * self.rank

    @property
    def query_width(self) -> int:
        """Return q, the width of a query."""
        return self.keys.shape[2]

    @property
    def keys_per_row(self) -> int:
        """Return k, how many keys an increment has room for."""
        return self.keys.shape[1]

    @property
    def shapes(self) -> dict[str, Shape]:
        """Return ``(layers, d_in, d_out)`` of every target."""
        return {
            name: (self.down[name].shape[0], self.down[name].shape[3], self.up[name].shape[2])
            for name in self.targets
        }

    @property
    def nbytes(self) -> int:
        """Return the size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by its name in ``state.safetensors``."""
        named = {
            "keys": self.keys,
            "task_of": self.task_of,
            "branch_of": self.branch_of,
            "usage": self.usage,
            "context": self.context,
            "centroids": self.centroids,
            "centroid_task": self.centroid_task,
        }
        for name in self.targets:
            named[f"down.{name}"] = self.down[name]
            named[f"up.{name}"] = self.up[name]
        return named

    def task_index(self, task: str) -> int:
        """Return the index of ``task``; raise NotFoundError if this state does not know it."""
        try:
            return self.tasks.index(task)
        except ValueError:
            known = ", ".join(self.tasks) or "none"
            message = f"task {task!r} is not in this version; known tasks: {known}"
            raise NotFoundError(message, param="task") from None

    def rows_of(self, task: str) -> Tensor:
        """Return the row indices ``[n]`` int64 of the increments created for ``task``."""
        return (self.task_of == self.task_index(task)).nonzero().flatten()

    def branches(self, task: str) -> int:
        """Return how many branches a known task has."""
        return int(self.branch_of[self.rows_of(task)].max()) + 1

    def expand(
        self,
        task: str,
        rows: int = ROWS_PER_TASK,
        generator: torch.Generator | None = None,
        *,
        context_logit: float = 0.0,
    ) -> AdapterState:
        """Return a state with one more task and ``rows`` more increments that do exactly nothing yet.

        ``down`` starts normal with standard deviation 1/sqrt(d_in), ``up`` zero, keys at random directions.
        Everything earlier stays byte-identical.

        Args:
            task: name of the new task.
            rows: S, increments to add.
            generator: source of the random values.
            context_logit: starting logit from the new task to every earlier one.
        """
        if check_task_name(task) in self.tasks:
            raise StateInvalid(f"task {task!r} is already in this state: retrain it instead")
        if rows < 1:
            raise StateInvalid(f"cannot add {rows} increments: use at least 1")
        known = len(self.tasks)
        fresh = torch.randn(rows, 1, self.query_width, generator=generator)
        fresh = torch.nn.functional.normalize(fresh, dim=-1)
        down, up = dict(self.down), dict(self.up)
        for name, (layers, d_in, d_out) in self.shapes.items():
            noise = torch.randn(layers, rows, self.rank, d_in, generator=generator) / math.sqrt(d_in)
            down[name] = torch.cat([self.down[name], noise], dim=1)
            up[name] = torch.cat([self.up[name], torch.zeros(layers, rows, d_out, self.rank)], dim=1)
        usage = torch.zeros(known + 1, self.rows + rows)
        usage[:known, : self.rows] = self.usage
        context = torch.zeros(known + 1, known + 1)
        context[:known, :known] = self.context
        context[known, :known] = context_logit
        return dataclasses.replace(
            self,
            tasks=(*self.tasks, task),
            keys=torch.cat([self.keys, _widened(fresh, self.keys_per_row)]),
            task_of=torch.cat([self.task_of, torch.full((rows,), known, dtype=torch.int64)]),
            branch_of=torch.cat([self.branch_of, torch.zeros(rows, dtype=torch.int64)]),
            usage=usage,
            context=context,
            down=down,
            up=up,
        ).validate()

    def branch(self, task: str, rows: Tensor, keys: Tensor) -> AdapterState:
        """Return a state in which a known task has copies of some increments, found by keys of their own.

        No increment that is there changes. No task's usage names the copies: none draws on them as context.

        Args:
            task: a known task.
            rows: indices ``[n]`` of the increments to copy.
            keys: ``[n, k, q]`` unit rows of the copies.
        """
        wide = max(self.keys_per_row, keys.shape[1])
        return dataclasses.replace(
            self,
            keys=torch.cat([_widened(self.keys, wide), _widened(keys.to(self.keys), wide)]),
            task_of=torch.cat([self.task_of, torch.full((len(rows),), self.task_index(task))]),
            branch_of=torch.cat([self.branch_of, torch.full((len(rows),), self.branches(task))]),
            usage=torch.nn.functional.pad(self.usage, (0, len(rows))),
            down={name: torch.cat([down, down[:, rows]], dim=1) for name, down in self.down.items()},
            up={name: torch.cat([up, up[:, rows]], dim=1) for name, up in self.up.items()},
        ).validate()

    def with_rows(
        self,
        rows: Sequence[int] | Tensor,
        *,
        keys: Tensor | None = None,
        down: Mapping[str, Tensor] | None = None,
        up: Mapping[str, Tensor] | None = None,
    ) -> AdapterState:
        """Return a state in which the named increments have new values and all others are untouched.

        Args:
            rows: indices of n increments.
            keys: ``[n, k, q]`` unit rows, or ``[n, q]`` for one key each, or None to keep them.
            down: per target ``[L, n, r, d_in]``, or None.
            up: per target ``[L, n, d_out, r]``, or None.
        """
        index = torch.as_tensor(rows, dtype=torch.int64)
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < self.rows:
            raise StateInvalid(f"rows {index.tolist()} are not all within the {self.rows} rows of this state")
        return dataclasses.replace(
            self,
            keys=self.keys if keys is None else self._with_keys(index, keys),
            down=_replaced_all("down", self.down, index, down),
            up=_replaced_all("up", self.up, index, up),
        ).validate()

    def _with_keys(self, index: Tensor, keys: Tensor) -> Tensor:
        fresh = keys[:, None] if keys.ndim == 2 else keys
        wide = max(self.keys_per_row, fresh.shape[1])
        return _replaced("keys", _widened(self.keys, wide), 0, index, _widened(fresh, wide))

    def with_usage(self, task: str, usage: Tensor) -> AdapterState:
        """Return a state whose ``usage`` row of ``task`` is ``usage`` ``[N]``."""
        row = torch.tensor([self.task_index(task)])
        return dataclasses.replace(self, usage=_replaced("usage", self.usage, 0, row, usage[None])).validate()

    def with_context(self, task: str, logits: Tensor) -> AdapterState:
        """Return a state whose context logits from ``task`` to the tasks before it are ``logits``."""
        index = self.task_index(task)
        if logits.shape != (index,):
            raise StateInvalid(f"context of {task!r} has shape {tuple(logits.shape)}, not ({index},)")
        context = self.context.clone()
        context[index, :index] = logits.detach().to(context)
        return dataclasses.replace(self, context=context).validate()

    def with_centroids(self, task: str, centroids: Tensor) -> AdapterState:
        """Return a state whose query centroids of ``task`` are ``centroids`` ``[c, q]``, no others."""
        index = self.task_index(task)
        keep = self.centroid_task != index
        fresh = centroids.detach().to(self.centroids)
        owner = torch.full((fresh.shape[0],), index, dtype=torch.int64)
        return dataclasses.replace(
            self,
            centroids=torch.cat([self.centroids[keep], fresh]),
            centroid_task=torch.cat([self.centroid_task[keep], owner]),
        ).validate()

    def with_routing(self, **changes: object) -> AdapterState:
        """Return a state whose routing settings differ in the named fields."""
        return dataclasses.replace(self, routing=dataclasses.replace(self.routing, **changes))  # type: ignore[arg-type]

    def validate(self) -> AdapterState:
        """Return this state; raise StateInvalid if a shape, type or value breaks the rules of the table."""
        from adapter_store.state_files import check_tensors

        check_tensors(self)
        return self

    def save(self, folder: Path) -> None:
        """Write ``state.safetensors`` and ``state.json`` into ``folder`` (created if missing)."""
        from adapter_store.state_files import save_state

        save_state(self, folder)

    @classmethod
    def load(cls, folder: Path, *, base_digest: str | None) -> AdapterState:
        """Read a state, trusting nothing in its files.

        Args:
            folder: holds ``state.safetensors`` and ``state.json``.
            base_digest: digest of the base that will run it; None reads a state of any base.

        Raises:
            BaseMismatch: it was made for another base.
            StateInvalid: a file is missing, damaged, foreign, or holds values that no state may have.
            OSError: the disk or the process failed; the state itself may be sound.
        """
        from adapter_store.state_files import load_state

        return load_state(folder, base_digest=base_digest)


def _widened(keys: Tensor, count: int) -> Tensor:
    """Return keys ``[n, count, q]``: each row's first one repeated, which changes no maximum."""
    return torch.cat([keys, keys[:, :1].expand(-1, count - keys.shape[1], -1)], dim=1)


def _replaced(name: str, old: Tensor, dim: int, index: Tensor, new: Tensor) -> Tensor:
    """Return a copy of ``old`` whose ``index`` entries along ``dim`` are ``new``."""
    wanted = (*old.shape[:dim], len(index), *old.shape[dim + 1 :])
    if new.shape != wanted:
        raise StateInvalid(f"{name} has shape {tuple(new.shape)}, not {wanted}")
    return old.index_copy(dim, index, new.detach().to(old))


def _replaced_all(
    name: str, old: Mapping[str, Tensor], index: Tensor, new: Mapping[str, Tensor] | None
) -> Mapping[str, Tensor]:
    if new is None:
        return old
    if set(new) != set(old):
        raise StateInvalid(f"{name} names the targets {sorted(new)}, not {sorted(old)}")
    return {target: _replaced(f"{name}.{target}", old[target], 1, index, new[target]) for target in old}
