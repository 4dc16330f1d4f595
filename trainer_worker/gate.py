"""Decide whether a new version may become ``stable``: the forgetting gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapter_store.versions.manifest import Gate

EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds of the gate; ratios from 0 to 1 (0.02 = two points).

    ``max_forgetting``: largest drop of any earlier task's accuracy. ``max_leak``: largest share of selection
    mass outside a task's own rows. ``min_retention``: least share of the base's zero-shot score. A new task
    must gain more than ``min_gain`` over the base; one that is trained again may fall like any other.
    """

    max_forgetting: float = 0.02
    max_leak: float = 0.05
    min_retention: float = 0.97
    min_gain: float = 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Scores of parent and candidate on the same held-out splits, 0 to 1; None where nothing was held out.

    A task with a score before and none after could not be measured: the gate fails closed.

    ``before`` is the best earlier score of a task; for a task that is trained for the first time, the base's.
    """

    trained: str
    new_task: bool
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    leak: Mapping[str, float]
    retention: float | None


def check(measured: Measured, policy: Policy) -> Gate:
    """Return the gate's verdict with every reason, not just the first."""
    reasons = _unmeasured(measured) + _forgetting(measured, policy)
    for task, leak in measured.leak.items():
        if leak > policy.max_leak + EPSILON:
            reasons.append(
                f"routing leak of {task} is {leak:.1%}, more than {policy.max_leak:.1%}: its questions"
                " select other tasks' increments"
            )
    retention = measured.retention
    if retention is not None and retention < policy.min_retention - EPSILON:
        reasons.append(
            f"zero-shot retention is {retention:.3f}, less than {policy.min_retention:.3f}: questions outside"
            " all tasks are answered worse than by the base"
        )
    reasons += _gain(measured, policy)
    return Gate(passed=not reasons, reasons=tuple(reasons))


def _unmeasured(measured: Measured) -> list[str]:
    return [
        f"{task} scored {before:.3f} before and could not be measured now: restore its held-out pictures"
        for task, before in measured.before.items()
        if before is not None and measured.after.get(task) is None
    ]


def _forgetting(measured: Measured, policy: Policy) -> list[str]:
    reasons = []
    for task, after in measured.after.items():
        before = measured.before.get(task)
        if task == measured.trained or before is None or after is None:
            continue
        if before - after > policy.max_forgetting + EPSILON:
            reasons.append(_fell(task, before, after, policy.max_forgetting))
    return reasons


def _fell(task: str, before: float, after: float, most: float) -> str:
    return f"{task} fell from {before:.3f} to {after:.3f}, more than {100 * most:.1f} points"


def _gain(measured: Measured, policy: Policy) -> list[str]:
    before, after = measured.before.get(measured.trained), measured.after.get(measured.trained)
    if before is None or after is None:
        return []
    gain = after - before
    if not measured.new_task:
        fell = -gain > policy.max_forgetting + EPSILON
        return [_fell(measured.trained, before, after, policy.max_forgetting)] if fell else []
    if gain > policy.min_gain + EPSILON or (before >= 1.0 - EPSILON and gain >= 0):
        return []
    return [f"{measured.trained} scores {after:.3f} beside {before:.3f} of the base: training gained nothing"]
