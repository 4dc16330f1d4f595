"""Place a task in the state before it learns: rows, keys, tau, centroids and usage (step 1 of a lesson)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.routing import cosines, intrinsic
from adapter_store.state import AdapterState
from trainer_worker.decide import Verdict, centroids_of
from trainer_worker.keys import align_keys, grown_keys, kinds_of, stranger_bar
from trainer_worker.workshop import Workshop

CENTROIDS_PER_TASK = 8
NO_CONTEXT_LOGIT = -30.0
"""Its sigmoid is 1e-13: earlier tasks have no part in a new one."""
FAR_QUANTILE = 0.05
"""A batch is far from a task's questions if half of it lies beyond this share of them."""
MOST_BRANCHES = 16
Say = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Placed:
    """A state that knows the batch's task, and those of the task's rows ``[n]`` that learn from it."""

    state: AdapterState
    rows: Tensor


def place(
    shop: Workshop,
    state: AdapterState,
    verdict: Verdict,
    queries: Tensor,
    settings: Hyperparameters,
    *,
    known: Tensor | None,
    imported: bool,
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
        say: hears a sentence and its data for the job's events.
        check: may raise to interrupt.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    state, task = shop.method.with_fixed_tau(state), verdict.task
    if verdict.decision == "retrain":
        state, rows = _found_again(shop, state, task, queries, known, generator, say)
        earlier = state.centroids[state.centroid_task == state.task_index(task)]
        centroids = centroids_of(torch.cat([earlier, queries]), CENTROIDS_PER_TASK, generator)
    else:
        logit = 0.0 if shop.method.contextual and not imported else NO_CONTEXT_LOGIT
        state = state.expand(task, settings.rows_per_task, generator, context_logit=logit)
        aligned = align_keys(queries, settings.rows_per_task, state.routing.top_m, generator)
        rows = state.rows_of(task)
        state = state.with_rows(rows, keys=aligned.keys)
        state = state.with_usage(task, intrinsic(state, queries, among=rows).mean(dim=0))
        centroids = centroids_of(queries, CENTROIDS_PER_TASK, generator)
        picks = [round(share, 3) for share in aligned.picks.tolist()]
        text = f"{settings.rows_per_task} increments placed, mean cosine {aligned.mean_cosine:.3f}"
        say(text, {"keys": aligned.keys.shape[1], "picks": picks})
    if shop.method.calibrate_tau:
        state = _turn_strangers_away(shop, state, task, queries, say, check)
    return Placed(state.with_centroids(task, centroids), rows)


def _found_again(
    shop: Workshop,
    state: AdapterState,
    task: str,
    queries: Tensor,
    known: Tensor | None,
    generator: torch.Generator,
    say: Say,
) -> tuple[AdapterState, Tensor]:
    """Let a known task be found by what it is asked now; return the rows that learn it.

    These are the rows that most of the batch selects. Where the batch lies far from what the task was asked
    before, they stay as they are, and copies of them learn: yesterday's answers cannot change. Rows that do
    not all answer together (S > M) learn as a whole, with the keys that they have.
    """
    whole = state.rows_of(task)
    cosine = cosines(state, queries)[:, whole]
    _, branch_of = torch.unique(state.keys[whole].flatten(1), dim=0, return_inverse=True)
    rows = whole[branch_of == branch_of[cosine.argmax(dim=1)].mode().values]
    if len(rows) == 1 < len(whole):  # S > M: every row has a key of its own
        return state, whole
    if not shop.method.branch or known is None or int(branch_of.max()) + 1 >= MOST_BRANCHES:
        far = False
    else:
        usual = cosines(state, known)[:, whole].amax(dim=1).quantile(FAR_QUANTILE)
        met = cosine.amax(dim=1).median()
        far = bool(met < usual)
        text = f"{'far from' if far else 'like'} what {task} was asked before"
        say(f"{text}: median cosine {met:.3f}, usual at least {usual:.3f}", {"branch": far})
    if not far:
        return state.with_rows(rows, keys=grown_keys(state.keys[rows], queries, generator)), rows
    keys = kinds_of(queries, generator).expand(len(rows), -1, -1)
    state = state.branch(task, rows, keys)
    return state, torch.arange(state.rows - len(rows), state.rows)


def _turn_strangers_away(
    shop: Workshop,
    state: AdapterState,
    task: str,
    queries: Tensor,
    say: Say,
    check: Callable[[], None],
) -> AdapterState:
    """Set tau so that general questions go to the base, and no task loses its own."""
    strangers = shop.retention.strangers(shop.featurizer, state.routing, check)
    rows = state.rows_of(task)
    own, others = (cosines(state, asked)[:, rows].amax(dim=1) for asked in (queries, strangers))
    bar = stranger_bar(own, others)
    first = len(state.tasks) == 1 and state.routing.tau == 0.0
    tau = bar if first else min(bar, state.routing.tau)
    say(f"questions with a best cosine under {tau:.3f} go to the base", {"tau": tau})
    return state.with_routing(tau=tau)
