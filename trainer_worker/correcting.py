"""What is different about a batch of corrections: where it is learned, how long, and what judges it.

Corrections are few, and each is about one picture: nothing of them can be held out. They are learned in
copies of the increments that gave the wrong answers, found by one key for each corrected question, so the
answers to all other questions stay as they are; and they are learned until they are answered right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.routing import cosines
from adapter_store.state import AdapterState
from trainer_worker.keys import MOST_KEYS, SAME_KEY, exact_keys, grown_keys, k_means

UNTIL_RIGHT = {"target_accuracy": 1.0, "patience": 0}
"""Learned until all are answered right, or as long as a new task would be; nothing else ends it."""


LEAD = 0.3
"""By how much of what is left to 1 the key of a corrected question beats what answers the question so far."""


def correcting_settings(settings: Hyperparameters, given: Mapping[str, Any]) -> Hyperparameters:
    """Return the settings of a batch of corrections; what its job names stays."""
    return settings.model_copy(update={k: v for k, v in UNTIL_RIGHT.items() if k not in given})


def meet_corrected(
    state: AdapterState, task: str, queries: Tensor, generator: torch.Generator, *, most_branches: int
) -> tuple[AdapterState, Tensor]:
    """Return a state whose task is found by what was corrected, and the rows ``[n]`` that learn it.

    Copies of the rows that most of the batch selects learn, as a new branch. Where a key of the task is a
    corrected question itself, it goes from the older branch to the new one; if all of the batch is so, or a
    branch would be left without a key, the branches that have them learn again. That is also done where there
    is no room for a branch.

    Args:
        state: knows the task.
        task: its name.
        queries: ``[B, q]`` of the batch.
        generator: for the centers of keys.
        most_branches: of one task.
    """
    whole, m, branches = state.rows_of(task), state.routing.top_m, state.branches(task)
    branch_of = state.branch_of[whole]
    if len(whole) // branches > m:
        return state, whole
    selected = branch_of[cosines(state, queries)[:, whole].argmax(dim=1)]
    if len(whole) // branches == m and branches < most_branches:
        given_up = _without(state, whole, queries)
        if given_up is not None:
            rows = whole[branch_of == selected.mode().values]
            keys = narrow_keys(given_up, queries, generator).expand(len(rows), -1, -1)
            copies = torch.arange(state.rows, state.rows + len(rows))
            return given_up.branch(task, rows, keys), copies
    chosen = selected.unique()
    for one in chosen.tolist():
        rows = whole[branch_of == one]
        fresh = exact_keys(queries[selected == one], generator)
        state = state.with_rows(rows, keys=grown_keys(state.keys[rows], fresh, generator))
    return state, whole[torch.isin(branch_of, chosen)]


def narrow_keys(state: AdapterState, queries: Tensor, generator: torch.Generator) -> Tensor:
    """Return keys ``[k, q]`` that the queries ``[B, q]`` find, and few others.

    A key that is the query would draw in all that is nearer to it than to the nearest key c so far: half of a
    tight cluster. With phi the angle between c and the query, the key lies behind the query, at an angle of
    ``phi + arccos(t)`` from c on the arc through both. The query's cosine with it is t, which beats that with
    any key, and tau, by ``LEAD``; a question as far from c in another direction must share most of that
    direction to find it. c is a key that a task began with: behind an earlier correction's lies the task.
    """
    unit = torch.nn.functional.normalize(queries.double(), dim=-1)
    if len(unit) > MOST_KEYS:
        unit = k_means(unit, MOST_KEYS, generator)
    begun = state.keys[state.branch_of == 0].flatten(0, 1).double()
    near, nearest = (unit @ begun.T).clamp(-1.0, 1.0).max(dim=1)
    center = begun[nearest]
    best = (unit @ state.keys.flatten(0, 1).double().T).amax(dim=1)
    floor = best.clamp(state.routing.tau, 1.0)
    angle = near.arccos() + (floor + LEAD * (1 - floor)).arccos()
    away = torch.nn.functional.normalize(unit - near[:, None] * center, dim=-1)
    keys = angle.cos()[:, None] * center + angle.sin()[:, None] * away
    return torch.nn.functional.normalize(keys, dim=-1).float()


def _without(state: AdapterState, rows: Tensor, queries: Tensor) -> AdapterState | None:
    """Return the state without those keys of ``rows`` that are among ``queries``.

    None if that would leave a row without any, or if every query is such a key.
    """
    unit = torch.nn.functional.normalize(queries.float(), dim=-1)
    likeness = state.keys[rows] @ unit.T  # [n, k, B]
    if bool((likeness > SAME_KEY).flatten(0, 1).any(dim=0).all()):
        return None
    taken = (likeness > SAME_KEY).any(dim=2)
    if bool(taken.all(dim=1).any()):
        return None
    for row, mask in zip(rows.tolist(), taken, strict=True):
        if mask.any():
            left = state.keys[row][~mask]
            padding = left[:1].expand(int(mask.sum()), -1)
            state = state.with_rows([row], keys=torch.cat([left, padding])[None])
    return state
