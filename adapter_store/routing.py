"""From a query to the coefficients of a request: one function for training, evaluation and serving."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter_store.errors import StateInvalid
from adapter_store.key_table import key_table
from adapter_store.state import AdapterState


@dataclass(frozen=True, slots=True)
class RowShare:
    """Tell what one increment has to do with one request.

    ``intrinsic`` and ``contextual`` are its parts of the coefficient c (eq. 3 and 4); ``selected`` says
    whether it is among the top M (eq. 2).
    """

    row: int
    task: str
    cosine: float
    intrinsic: float
    contextual: float
    selected: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """Tell how one request was routed: its rows by weight, and each task's share of the coefficient mass.

    ``answered_by_base`` is true where the coefficients are zero (no increment, no positive cosine, or best
    cosine under tau).
    """

    best_cosine: float
    tau: float
    answered_by_base: bool
    rows: tuple[RowShare, ...]
    task_shares: dict[str, float]


def cosines(state: AdapterState, queries: Tensor) -> Tensor:
    """Return the cosine of every query with the nearest key of every increment.

    Computed in float64 and rounded, so that a request's result does not depend on its batch mates.

    Args:
        state: the version's state.
        queries: ``[B, q]``.

    Returns:
        ``[B, N]`` float32.
    """
    if queries.ndim != 2 or queries.shape[1] != state.query_width:
        raise StateInvalid(f"queries are {list(queries.shape)}; this state routes [B, {state.query_width}]")
    if not state.rows:
        return torch.zeros(len(queries), 0, device=queries.device)
    return key_table(state.keys, queries.device).cosines(F.normalize(queries.double(), dim=-1))


def intrinsic(state: AdapterState, queries: Tensor, among: Tensor | None = None) -> Tensor:
    """Return the intrinsic coefficients a (eq. 2 and 3).

    The top M rows by cosine share a mass of one in proportion to their cosines clipped at 0; equal cosines
    are taken in row order. A query without a positive cosine gets zeros.

    Args:
        state: the version's state.
        queries: ``[B, q]``.
        among: select among these rows only, by index (training); None selects among all (serving).

    Returns:
        ``[B, N]`` float32.
    """
    return _intrinsic(state, cosines(state, queries), among)


def contextual(state: AdapterState, a: Tensor, context: Tensor | None = None) -> Tensor:
    """Return the contextual coefficients k (eq. 4), differentiable in ``context``.

    ``k = P W u`` where ``P[b, t]`` is the intrinsic mass of request b on task t and
    ``W[t, l] = sigmoid(w[t, l])`` for earlier tasks l < t, else 0.

    Args:
        state: the version's state.
        a: intrinsic coefficients ``[B, N]``.
        context: logits ``[T, T]`` to use in place of the state's (a parameter in training).

    Returns:
        ``[B, N]`` float32.
    """
    logits = state.context if context is None else context
    tasks = len(state.tasks)
    if logits.shape != (tasks, tasks):
        raise StateInvalid(f"context logits are {list(logits.shape)}; this state has {tasks} tasks")
    mass = task_mass(state, a)
    weights = torch.sigmoid(logits).tril(-1).to(a.device)
    return mass @ weights @ state.usage.to(a.device)


def coefficients(
    state: AdapterState, queries: Tensor, among: Tensor | None = None, context: Tensor | None = None
) -> Tensor:
    """Return the coefficients c = a + k of requests (eq. 5).

    A request whose best cosine is under tau gets zeros: the plain base answers. Examples of a known task
    (``among`` its rows) are never turned away.

    Args:
        state: the version's state.
        queries: ``[B, q]``.
        among: as in ``intrinsic``; None when serving and evaluating.
        context: as in ``contextual``.

    Returns:
        ``[B, N]`` float32.
    """
    a = answering(state, queries, among)
    return a + contextual(state, a, context)


def answering(state: AdapterState, queries: Tensor, among: Tensor | None = None) -> Tensor:
    """Return intrinsic coefficients a ``[B, N]``, zeros where the plain base answers (eq. 5).

    Args:
        state: the version's state.
        queries: ``[B, q]``.
        among: as in ``intrinsic``; examples of a known task are never turned away.
    """
    cosine = cosines(state, queries)
    a = _intrinsic(state, cosine, among)
    if among is None and state.rows:
        a = torch.where(cosine.amax(dim=1, keepdim=True) < state.routing.tau, torch.zeros_like(a), a)
    return a


def task_mass(state: AdapterState, c: Tensor) -> Tensor:
    """Return how much coefficient mass lies on each task's rows.

    Args:
        state: the version's state.
        c: ``[B, N]`` coefficients (all, or one part).

    Returns:
        ``[B, T]``, the sum of ``c`` over each task's rows.
    """
    mass = torch.zeros(len(c), len(state.tasks), dtype=torch.float64, device=c.device)
    return mass.index_add(1, state.task_of.to(c.device), c.double()).to(c.dtype)


def mass_outside(c: Tensor, state: AdapterState, task: str) -> Tensor:
    """Return the share of coefficient mass that lies outside ``task``'s rows, the routing leak.

    Given the intrinsic part it measures what can cause forgetting; given c it also counts the contextual
    mass that a task takes from earlier ones by design.

    Args:
        c: ``[B, N]`` nonnegative coefficients.
        state: the state they belong to.
        task: the task that the requests belong to.

    Returns:
        ``[B]`` in [0, 1]; 0 where a request has no mass at all.
    """
    mass = task_mass(state, c)
    total = mass.sum(dim=1)
    outside = total - mass[:, state.task_index(task)]
    return torch.where(total > 0, outside / total.clamp_min(1e-12), torch.zeros_like(total)).clamp(0.0, 1.0)


def explain(state: AdapterState, queries: Tensor) -> list[Explanation]:
    """Return for each query ``[B, q]`` which rows answer it and why, heaviest first."""
    cosine = cosines(state, queries)
    a = _intrinsic(state, cosine, None)
    k = contextual(state, a)
    c = coefficients(state, queries)
    chosen = _selected(state, cosine, None)
    parts = zip(cosine, a, k, c, chosen, strict=True)
    return [_explain_one(state, *row) for row in parts]


def _intrinsic(state: AdapterState, cosine: Tensor, among: Tensor | None) -> Tensor:
    chosen = _selected(state, cosine, among)
    weight = torch.where(chosen, cosine.clamp_min(0.0), torch.zeros_like(cosine))
    total = weight.sum(dim=1, keepdim=True)
    return torch.where(total > 0, weight / total.clamp_min(torch.finfo(weight.dtype).tiny), weight)


def _selected(state: AdapterState, cosine: Tensor, among: Tensor | None) -> Tensor:
    """Return the top-M mask ``[B, N]`` (eq. 2)."""
    mask = torch.zeros_like(cosine, dtype=torch.bool)
    if not state.rows:
        return mask
    allowed = torch.ones(state.rows, dtype=torch.bool, device=cosine.device)
    if among is not None:
        allowed = torch.zeros_like(allowed).index_fill_(0, among.to(cosine.device), value=True)
    masked = cosine.masked_fill(~allowed, -torch.inf)
    order = masked.sort(dim=1, descending=True, stable=True).indices[:, : state.routing.top_m]
    return mask.scatter(1, order, value=True) & allowed


def _explain_one(
    state: AdapterState, cosine: Tensor, a: Tensor, k: Tensor, c: Tensor, chosen: Tensor
) -> Explanation:
    order = (c + chosen.float()).argsort(descending=True, stable=True).tolist()
    rows = tuple(
        RowShare(
            row=row,
            task=state.tasks[int(state.task_of[row])],
            cosine=float(cosine[row]),
            intrinsic=float(a[row]),
            contextual=float(k[row]),
            selected=bool(chosen[row]),
        )
        for row in order
        if bool(chosen[row]) or float(k[row]) > 0
    )
    total = float(c.sum())
    mass = task_mass(state, c[None])[0]
    return Explanation(
        best_cosine=float(cosine.max()) if state.rows else 0.0,
        tau=state.routing.tau,
        answered_by_base=not bool(c.any()),
        rows=rows,
        task_shares={
            task: float(mass[index]) / total if total > 0 else 0.0 for index, task in enumerate(state.tasks)
        },
    )
