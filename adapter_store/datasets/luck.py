"""Count how many held-out pictures tell what was learned from luck.

The trainer holds out at least so many, its gate asks the binomial tail, and whoever checks data is told how
often a good model would be held back for want of pictures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapter_store.datasets.records import Example

MAX_CHANCE = 0.05
HELD_OUT_RATIO = 0.2
LEAST_HELD_OUT = 4


@dataclass(frozen=True, slots=True)
class Measuring:
    """Say how the worker of this deployment measures a new task.

    Attributes:
        max_chance: the gate's largest probability that the task was learned by luck; 1: not asked.
        holdout_ratio: share of the pictures that is held out, 0 to 1.
    """

    max_chance: float = MAX_CHANCE
    holdout_ratio: float = HELD_OUT_RATIO


def binomial_tail(least: int, trials: int, share: float) -> float:
    """Return ``P(K >= least)`` for K binomial in ``trials`` and ``share``."""
    if share <= 0 or least > trials:
        return float(least <= 0)
    if least <= 0 or share >= 1:
        return 1.0
    total = 0.0
    for hits in range(least, trials + 1):
        ways = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
        total += math.exp(ways + hits * math.log(share) + (trials - hits) * math.log1p(-share))
    return min(total, 1.0)


def commonest_share(examples: Sequence[Example]) -> float:
    """Return the share, 0 to 1, of the most frequent answer; 1 without any."""
    answers = Counter(turn.answer for example in examples for turn in example.turns)
    return max(answers.values()) / answers.total() if answers else 1.0


def least_held_out(
    pictures: int, answers_each: float, commonest: float, max_chance: float = MAX_CHANCE
) -> int:
    """Return how many of a new task's pictures must be held out: never more than a third of them.

    That is twice as many as were enough if all answers were right, so that some may be wrong.

    Args:
        pictures: new pictures of the batch, at least two.
        answers_each: answers asked for of one picture.
        commonest: share of the batch's most frequent answer, 0 to 1.
        max_chance: the gate's largest probability of luck, over 0 and up to 1.
    """
    enough = LEAST_HELD_OUT
    if 0 < commonest < 1:
        answers = 2 * math.ceil(math.log(max_chance) / math.log(commonest))
        enough = max(enough, math.ceil(answers / max(1.0, answers_each)))
    return max(1, min(enough, pictures // 3))


def held_back_by_luck(asked: int, commonest: float, accuracy: float, max_chance: float = MAX_CHANCE) -> float:
    """Return the probability that a model of that accuracy answers too few of the questions right.

    Args:
        asked: held-out questions.
        commonest: share of the most frequent answer, 0 to 1.
        accuracy: the model's true accuracy, 0 to 1.
        max_chance: the gate's largest probability of luck, over 0 and up to 1.
    """
    too_few = asked
    while too_few >= 0 and binomial_tail(too_few, asked, commonest) <= max_chance:
        too_few -= 1
    return 1.0 - binomial_tail(too_few + 1, asked, accuracy)
