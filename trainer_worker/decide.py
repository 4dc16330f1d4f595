"""Decide whether a batch belongs to a known task (retrain) or opens a new one (expand).

A task is remembered by centroids of its queries, never by data. The bar ``theta`` is calibrated from how
similar each known task's held-out queries are to their own centroids and to other tasks' centroids.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from adapter_store.errors import InputError
from adapter_store.names import check_task_name
from trainer_worker.keys import k_means

MARGIN_BELOW_OWN = 0.15
Decision = Literal["retrain", "expand"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Say what to do with a batch, for which task, and the numbers behind it."""

    decision: Decision
    task: str
    reason: str
    theta: float | None = None
    similarities: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return plain values for an event."""
        return {
            "decision": self.decision,
            "task": self.task,
            "reason": self.reason,
            "theta": None if self.theta is None else round(self.theta, 4),
            "similarities": {task: round(value, 4) for task, value in self.similarities.items()},
        }


def similarity(queries: Tensor, centroids: Tensor) -> float:
    """Return the mean over queries ``[B, q]`` of the best cosine with the centroids ``[C, q]``."""
    return float((queries @ centroids.T).max(dim=1).values.mean())


def calibrate_theta(
    tasks: Sequence[str], held_out: Mapping[str, Tensor], centroids: Tensor, centroid_task: Tensor
) -> float:
    """Place the bar between "own" and "foreign" similarity of the known tasks' held-out queries.

    With one measured task there is no foreign value: the bar is 0.15 under its own. When own and foreign
    overlap, the bar is the own value: rather open a new task than disturb a known one.
    """
    own: list[float] = []
    foreign: list[float] = []
    for index, task in enumerate(tasks):
        queries = held_out.get(task)
        if queries is None or len(queries) == 0:
            continue
        for other in range(len(tasks)):
            value = similarity(queries, centroids[centroid_task == other])
            (own if other == index else foreign).append(value)
    lowest = min(own, default=1.0)
    highest = max(foreign, default=lowest - 2 * MARGIN_BELOW_OWN)
    return (lowest + highest) / 2 if highest < lowest else lowest


def decide(
    queries: Tensor,
    *,
    named: str | None,
    tasks: Sequence[str],
    centroids: Tensor,
    centroid_task: Tensor,
    held_out: Mapping[str, Tensor],
    fixed_theta: float | None = None,
    taken: Collection[str] = (),
) -> Verdict:
    """Choose retrain or expand for a batch of queries ``[B, q]``.

    A named known task is retrained, a named unknown one is opened; without a name the most similar known task
    is retrained if its similarity reaches ``theta`` (``fixed_theta``, or calibrated when None), otherwise a
    task ``task-<n>`` is opened whose name is neither known nor ``taken``.
    """
    if len(queries) == 0:
        raise InputError(
            "the data set has no question to learn from; add at least one example with an answer"
        )
    similarities = {
        task: similarity(queries, centroids[centroid_task == index]) for index, task in enumerate(tasks)
    }
    if named is not None:
        decision: Decision = "retrain" if named in tasks else "expand"
        reason = f"the caller named the {'known' if named in tasks else 'new'} task"
        return Verdict(decision, check_task_name(named), reason, None, similarities)
    if not tasks:
        return Verdict("expand", _free_name((), taken), "no task is known yet", None, similarities)
    theta = (
        fixed_theta if fixed_theta is not None else calibrate_theta(tasks, held_out, centroids, centroid_task)
    )
    best = max(similarities, key=lambda task: similarities[task])
    if similarities[best] >= theta:
        return Verdict(
            "retrain", best, f"similarity {similarities[best]:.3f} >= {theta:.3f}", theta, similarities
        )
    reason = f"best similarity {similarities[best]:.3f} ({best}) < {theta:.3f}"
    return Verdict("expand", _free_name(tasks, taken), reason, theta, similarities)


def centroids_of(queries: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Summarize queries ``[B, q]`` by at most ``count`` distinct k-means centers ``[<=count, q]``."""
    centers = k_means(queries, min(count, len(queries)), generator)
    return torch.unique(centers.round(decimals=6), dim=0) if len(centers) > 1 else centers


def _free_name(tasks: Sequence[str], taken: Collection[str]) -> str:
    number = len(tasks) + 1
    while f"task-{number}" in tasks or f"task-{number}" in taken:
        number += 1
    return f"task-{number}"
