"""Place a task in the state before it learns: rows, keys, tau, centroids and usage (step 1 of a lesson)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.routing import cosines, intrinsic
from adapter_store.state import CLOSED_CONTEXT, AdapterState
from trainer_worker.correcting import meet_corrected
from trainer_worker.decide import Verdict, centroids_of
from trainer_worker.keys import align_keys, grown_keys, kinds_of, stranger_bar
from trainer_worker.workshop import Workshop

CENTROIDS_PER_TASK = 8
FAR_QUANTILE = 0.05
"""A batch is far from a task's questions if half of it lies beyond this share of them."""
LEAST_KNOWN = 8
"""So few held-out questions give no such share."""
MOST_BRANCHES = 16
"""With four increments of rank 8 each, a task then has 64 of them, of rank 512: as much as a pool computes
whole. Of a 7B (11 layers of 4096 by 4096) they are 185 MB in float32, beside weights of 14 GB."""
SMALL_SHARE = 0.1
"""A branch that less of a batch selects does not learn from it."""
Say = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Placed:
    """A state that knows the batch's task, and those of the task's rows ``[n]`` that learn from it.

    ``alike`` says that the batch lies where the task was asked before, as its held-out questions show.
    """

    state: AdapterState
    rows: Tensor
    alike: bool = False


def place(
    shop: Workshop,
    state: AdapterState,
    verdict: Verdict,
    queries: Tensor,
    settings: Hyperparameters,
    *,
    known: Tensor | None,
    imported: bool,
    corrects: bool = False,
    say: Say,
    check: Callable[[], None],
) -> Placed:
    """Return a state that knows the batch's task and sends the batch's queries to it.

    Args:
        shop: the process's parts.
        state: of the parent version.
        verdict: the task, and whether it is new.
        queries: ``[B, q]`` of the training examples.
        settings: rows of a new task, and the seed.
        known: ``[n, q]`` held-out queries that the task had before this batch, if any.
        imported: a LoRA takes the task's place, so earlier tasks have no part in it.
        corrects: the batch is of corrections, which are found one by one.
        say: hears a sentence and its data for the job's events.
        check: may raise to interrupt.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    state, task, alike = shop.method.with_fixed_tau(state), verdict.task, False
    if verdict.decision == "retrain":
        if corrects:
            met = _corrected(state, task, queries, generator, branch=shop.method.branch, say=say)
        else:
            met = meet_again(state, task, queries, known, generator, branch=shop.method.branch, say=say)
        moved, state, rows, alike = met.state is not state, met.state, met.rows, met.alike
        earlier = state.centroids[state.centroid_task == state.task_index(task)]
        centroids = centroids_of(torch.cat([earlier, queries]), CENTROIDS_PER_TASK, generator)
    else:
        logit = 0.0 if shop.method.contextual and not imported else CLOSED_CONTEXT
        state = state.expand(task, settings.rows_per_task, generator, context_logit=logit)
        aligned = align_keys(queries, settings.rows_per_task, state.routing.top_m, generator, exact=corrects)
        rows, moved = state.rows_of(task), True
        state = state.with_rows(rows, keys=aligned.keys)
        state = state.with_usage(task, intrinsic(state, queries, among=rows).mean(dim=0))
        centroids = centroids_of(queries, CENTROIDS_PER_TASK, generator)
        picks = [round(share, 3) for share in aligned.picks.tolist()]
        text = f"{settings.rows_per_task} increments placed, mean cosine {aligned.mean_cosine:.3f}"
        say(text, {"keys": aligned.keys.shape[1], "picks": picks})
    if shop.method.calibrate_tau and moved:
        first = verdict.decision == "expand" and len(state.tasks) == 1
        state = _turn_strangers_away(shop, state, task, queries, first, say, check)
    return Placed(state.with_centroids(task, centroids), rows, alike)


def _corrected(
    state: AdapterState, task: str, queries: Tensor, generator: torch.Generator, *, branch: bool, say: Say
) -> Placed:
    before, most = state.rows, MOST_BRANCHES if branch else 0
    state, rows = meet_corrected(state, task, queries, generator, most_branches=most)
    where = "copies of the increments that answered" if state.rows > before else "the increments that answer"
    say(f"{len(queries)} corrections of {task} are learned in {where}", {"branched": state.rows > before})
    return Placed(state, rows)


def meet_again(
    state: AdapterState,
    task: str,
    queries: Tensor,
    known: Tensor | None,
    generator: torch.Generator,
    *,
    branch: bool,
    say: Say,
) -> Placed:
    """Let a known task be found by what it is asked now, and say which of its rows learn it.

    A batch like before goes to the branches that its queries select, each found by its own share of them from
    now on. A batch that lies far from what the task was asked before branches: copies of the rows that it
    selects learn it, found by keys of their own, and no increment that is there changes. Rows that do not all
    answer together (S > M) learn as a whole, with the keys that they have.

    Args:
        state: knows the task.
        task: its name.
        queries: ``[B, q]`` of the batch.
        known: ``[n, q]`` held-out queries from before; fewer than ``LEAST_KNOWN`` say nothing of distance.
        generator: for the centers of new keys.
        branch: whether branching is allowed.
        say: hears what was decided.
    """
    whole, m, branches = state.rows_of(task), state.routing.top_m, state.branches(task)
    branch_of = state.branch_of[whole]
    rows_each = len(whole) // branches
    cosine = cosines(state, queries)[:, whole]
    selected = branch_of[cosine.argmax(dim=1)]
    best = cosine.amax(dim=1)
    usual = _least_usual(state, whole, known)
    away = best < usual
    far = bool(away.float().mean() > 0.5)
    alike = usual > -1 and not far
    if rows_each > m:
        return Placed(state, whole, alike)
    text = f"{'far from' if far else 'taken as'} what {task} was asked before"
    say(f"{text}: median cosine {best.median():.3f}, least usual {usual:.3f}", {"far": far})
    if far and branch and rows_each == m and branches < MOST_BRANCHES:
        rows = whole[branch_of == selected[away].mode().values]
        keys = kinds_of(queries[away], generator).expand(len(rows), -1, -1)
        copies = torch.arange(state.rows, state.rows + len(rows))
        return Placed(state.branch(task, rows, keys), copies)
    counts = torch.bincount(selected, minlength=branches)
    chosen = (counts >= min(SMALL_SHARE * len(queries), int(counts.max()))).nonzero().flatten()
    for one in chosen.tolist():
        rows = whole[branch_of == one]
        state = state.with_rows(rows, keys=grown_keys(state.keys[rows], queries[selected == one], generator))
    return Placed(state, whole[torch.isin(branch_of, chosen)], alike)


def _least_usual(state: AdapterState, rows: Tensor, known: Tensor | None) -> float:
    """Return the best cosine with ``rows`` that nearly all known questions have; -1 with too few of them."""
    if known is None or len(known) < LEAST_KNOWN:
        return -1.0
    return float(cosines(state, known)[:, rows].amax(dim=1).quantile(FAR_QUANTILE))


def _turn_strangers_away(
    shop: Workshop,
    state: AdapterState,
    task: str,
    queries: Tensor,
    first: bool,
    say: Say,
    check: Callable[[], None],
) -> AdapterState:
    """Set tau so that general questions go to the base, and no task loses its own."""
    strangers = shop.retention.strangers(shop.featurizer, state.routing, check)
    rows = state.rows_of(task)
    own, others = (cosines(state, asked)[:, rows].amax(dim=1) for asked in (queries, strangers))
    bar = stranger_bar(own, others)
    tau = bar if first else min(bar, state.routing.tau)
    say(f"questions with a best cosine under {tau:.3f} go to the base", {"tau": tau})
    return state.with_routing(tau=tau)
