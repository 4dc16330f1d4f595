"""Place a task in the state before it learns: rows, keys, tau, centroids and usage (step 1 of a lesson)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.routing import cosines, intrinsic
from adapter_store.state import AdapterState
from trainer_worker.decide import Verdict, centroids_of
from trainer_worker.keys import align_keys, grown_keys, stranger_bar
from trainer_worker.workshop import Workshop

CENTROIDS_PER_TASK = 8
NO_CONTEXT_LOGIT = -30.0
"""Its sigmoid is 1e-13: earlier tasks have no part in a new one."""
Say = Callable[[str, dict[str, Any]], None]


def place(
    shop: Workshop,
    state: AdapterState,
    verdict: Verdict,
    queries: Tensor,
    settings: Hyperparameters,
    *,
    imported: bool,
    say: Say,
    check: Callable[[], None],
) -> AdapterState:
    """Return a state that knows the batch's task and sends the batch's queries to it.

    Args:
        shop: the process's parts.
        state: of the parent version.
        verdict: the task, and whether it is new.
        queries: ``[B, q]`` of the training examples.
        settings: rows of a new task, and the seed.
        imported: a LoRA takes the task's place, so earlier tasks have no part in it.
        say: hears a sentence and its data for the job's events.
        check: may raise to interrupt.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    state, task = shop.method.with_fixed_tau(state), verdict.task
    if verdict.decision == "retrain":
        state = _found_again(state, task, queries, generator)
        known = state.centroids[state.centroid_task == state.task_index(task)]
        centroids = centroids_of(torch.cat([known, queries]), CENTROIDS_PER_TASK, generator)
    else:
        logit = 0.0 if shop.method.contextual and not imported else NO_CONTEXT_LOGIT
        state = state.expand(task, settings.rows_per_task, generator, context_logit=logit)
        aligned = align_keys(queries, settings.rows_per_task, state.routing.top_m, generator)
        state = state.with_rows(state.rows_of(task), keys=aligned.keys)
        state = state.with_usage(task, intrinsic(state, queries, only_task=task).mean(dim=0))
        centroids = centroids_of(queries, CENTROIDS_PER_TASK, generator)
        picks = [round(share, 3) for share in aligned.picks.tolist()]
        text = f"{settings.rows_per_task} increments placed, mean cosine {aligned.mean_cosine:.3f}"
        say(text, {"keys": aligned.keys.shape[1], "picks": picks})
    if shop.method.calibrate_tau:
        state = _turn_strangers_away(shop, state, task, queries, say, check)
    return state.with_centroids(task, centroids)


def _found_again(state: AdapterState, task: str, queries: Tensor, generator: torch.Generator) -> AdapterState:
    """Let a known task be found by what it is asked now, too, where all its rows answer together."""
    rows = state.rows_of(task)
    if len(rows) > state.routing.top_m:
        return state
    return state.with_rows(rows, keys=grown_keys(state.keys[rows], queries, generator))


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
