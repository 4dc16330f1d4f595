"""Decide whether a new version may become ``stable``: the forgetting gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapter_store.datasets.luck import MAX_CHANCE, binomial_tail
from adapter_store.versions.manifest import Gate

EPSILON = 1e-9
FORGIVING = 20
"""With so many held-out questions, one that is answered differently says nothing of the others."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds of the gate; ratios from 0 to 1 (0.02 = two points).

    ``max_forgetting``: largest drop of any earlier task's accuracy; unless it is 0, one question of at least
    20 is no drop, but of the task that is trained. ``max_leak``: largest share of selection mass outside a
    task's own rows. ``min_retention``: least share of the base's zero-shot score. A new task must gain more
    than ``min_gain`` over the base; one that is trained again may fall like any other, on all its held-out
    pictures and on those that it had first. ``max_chance``: largest probability that somebody who always
    gives a batch's commonest answer does as well on its held-out pictures (1: not asked).
    """

    max_forgetting: float = 0.02
    max_leak: float = 0.05
    min_retention: float = 0.97
    min_gain: float = 0.0
    max_chance: float = MAX_CHANCE


@dataclass(frozen=True, slots=True)
class Fresh:
    """How a batch's own held-out questions are answered: ``correct`` of ``answers``.

    ``commonest`` is the share of the most frequent answer among those that were learned.
    """

    correct: int
    answers: int
    commonest: float

    @property
    def chance(self) -> float:
        """Return the probability that answers drawn with the commonest one's share are right as often.

        ``P(K >= correct)`` for K binomial in ``answers`` and ``commonest``.
        """
        return binomial_tail(self.correct, self.answers, self.commonest)

    @property
    def telling(self) -> float:
        """Return the same probability if all were right: no smaller one can be had from so few questions."""
        return self.commonest**self.answers


@dataclass(frozen=True, slots=True)
class Corrected:
    """How many of ``asked`` corrected questions parent and candidate answer as they were corrected."""

    before: int
    after: int
    asked: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Scores of parent and candidate on the same held-out splits, 0 to 1; None where nothing was held out.

    A task with a score before and none after could not be measured: the gate fails closed.

    ``before`` is the best earlier score of a task; for a task that is trained for the first time, the base's.
    ``kept`` are the best earlier and the present score of a retrained task on the pictures that were held
    out for it first; None for a new task. ``fresh`` are the batch's own held-out questions, None without any.
    ``asked`` counts the held-out questions behind ``before`` and ``after``. ``alike``: the batch lies where a
    known task was asked before, so that what it knew judges the batch, too. ``corrected``: the batch is of
    corrections; nothing of it is held out, and its own questions tell whether it was learned.
    """

    trained: str
    new_task: bool
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    leak: Mapping[str, float]
    retention: float | None
    kept: tuple[float, float] | None = None
    fresh: Fresh | None = None
    asked: Mapping[str, int] = field(default_factory=dict)
    alike: bool = False
    corrected: Corrected | None = None


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
    reasons += _gain(measured, policy) + _chance(measured, policy)
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
        reasons += _drop(task, before, after, policy, measured.asked.get(task))
    return reasons


def _gain(measured: Measured, policy: Policy) -> list[str]:
    task = measured.trained
    before, after = measured.before.get(task), measured.after.get(task)
    if before is None or after is None:
        return []
    gain = after - before
    if not measured.new_task:
        return _kept(measured, policy) + _drop(task, before, after, policy)
    if gain > policy.min_gain + EPSILON or (before >= 1.0 - EPSILON and gain >= 0):
        return []
    return [f"{task} scores {after:.3f} beside {before:.3f} of the base: training gained nothing"]


def _kept(measured: Measured, policy: Policy) -> list[str]:
    """Refuse a batch that teaches the opposite: its own held-out pictures would hide what the others lose."""
    if measured.kept is None:
        return []
    reasons = _drop(measured.trained, *measured.kept, policy)
    return [f"{reason}, on the pictures that were held out first" for reason in reasons]


def _drop(task: str, before: float, after: float, policy: Policy, asked: int | None = None) -> list[str]:
    one = 1 / asked if asked and asked >= FORGIVING and policy.max_forgetting else 0.0
    most = max(policy.max_forgetting, one)
    if before - after <= most + EPSILON:
        return []
    return [f"{task} fell from {before:.3f} to {after:.3f}, more than {100 * most:.1f} points"]


def _chance(measured: Measured, policy: Policy) -> list[str]:
    """Refuse what cannot be told from luck: shuffled answers, one answer for everything, too few pictures."""
    task, fresh = measured.trained, measured.fresh
    if measured.corrected is not None:
        return _uncorrected(task, measured.corrected)
    if policy.max_chance >= 1:
        return []
    judged_otherwise = measured.alike and not measured.new_task
    if fresh is None:
        return [] if judged_otherwise else [_UNMEASURED.format(task=task)]
    if fresh.telling > policy.max_chance and judged_otherwise:
        return []  # so few pictures, or so like ones, are judged by what the task knew before
    if fresh.chance <= policy.max_chance:
        return []
    if fresh.commonest >= 1:
        return [f"every answer that {task} learned is the same: nothing tells a right one from a guess"]
    found = f"{fresh.correct} of {fresh.answers} held-out questions of this batch are answered right"
    if fresh.telling > policy.max_chance:
        return [f"{found}: too few to tell {task} from luck; send more pictures of it"]
    always = f"always giving {task}'s commonest answer would be right in {fresh.commonest:.0%}"
    return [f"{found}; {always}: pictures and answers do not seem to belong together"]


def _uncorrected(task: str, found: Corrected) -> list[str]:
    """Refuse corrections that were not learned; luck is not asked about what somebody says is right."""
    if found.after > found.before or found.after == found.asked:
        return []
    answered = f"{found.after} of {found.asked} corrected questions of {task} are answered as corrected"
    return [f"{answered}, {found.before} were before: nothing was learned"]


_UNMEASURED = (
    "no picture of this batch of {task} is held out, and it is like nothing measured before: nothing can be"
    " measured; send more pictures"
)
