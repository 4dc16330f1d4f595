"""The rule by which a canary ends without being asked: errors, slowness, thumbs down."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from server.canary.tally import Tally, quantile

Decision = Literal["promoted", "rolled_back", "errors", "slowdown", "thumbs_down"]
DECISIONS_OF_THE_RULE: tuple[Decision, ...] = ("errors", "slowdown", "thumbs_down")
SLOW_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Rule:
    """Say how much worse than ``stable`` a canary may be.

    Attributes:
        max_error_ratio: largest share of its requests that may fail, if it is more than of ``stable``.
        max_slowdown: largest 95th percentile of its time to the first token, or per further token, over that
            of ``stable``; 0: not asked. Whole answers are not compared: some askers want longer ones.
        max_thumbs_down: largest share of its thumbs that may point down, if it is more than of ``stable``.
        min_requests: measured times before they are judged, of both; errors are judged as if all others up
            to this number were answered.
        min_thumbs: thumbs before they are judged.
    """

    max_error_ratio: float = 0.05
    max_slowdown: float = 1.5
    max_thumbs_down: float = 0.3
    min_requests: int = 50
    min_thumbs: int = 10

    def in_words(self) -> list[str]:
        """Return what ends a canary, each as the end of a sentence for people."""
        fails, downs = f"{100 * self.max_error_ratio:g} %", f"{100 * self.max_thumbs_down:g} %"
        counted = f"counted as if there were at least {self.min_requests}, and more than with stable"
        ends = [f"more than {fails} of its requests fail, {counted}"]
        if self.max_slowdown:
            slow = (
                "for 95 of 100 answers, the time to the first token or that for each further one is more than"
            )
            factor = f"{self.max_slowdown:g} times as long as with stable"
            ends.append(f"it is slow: {slow} {factor}, from {self.min_requests} requests to each on")
        thumbs = f"from {self.min_thumbs} thumbs on, and more than with stable"
        ends.append(f"more than {downs} of its thumbs point down, {thumbs}")
        return ends


@dataclass(frozen=True, slots=True)
class Verdict:
    """Say why a canary ends: as a word for metrics, and in a sentence for people."""

    decision: Decision
    reason: str


def judged(rule: Rule, canary: Tally, stable: Tally) -> Verdict | None:
    """Return why ``canary`` has to end, or None."""
    return _errors(rule, canary, stable) or _slowdown(rule, canary, stable) or _thumbs(rule, canary, stable)


def _errors(rule: Rule, canary: Tally, stable: Tally) -> Verdict | None:
    certain = canary.errors / max(canary.requests, rule.min_requests)
    own, other = canary.error_ratio or 0.0, stable.error_ratio or 0.0
    if certain <= rule.max_error_ratio or own <= other:
        return None
    text = f"{canary.errors} of {canary.requests} requests failed ({own:.1%}; {other:.1%} of stable's)"
    return Verdict("errors", f"{text}: more than {rule.max_error_ratio:.1%} of at least {rule.min_requests}")


def _slowdown(rule: Rule, canary: Tally, stable: Tally) -> Verdict | None:
    """Compare what is alike in all answers, however long they are."""
    first = _slower(rule, canary.first_token_seconds, stable.first_token_seconds)
    if first is not None:
        return Verdict("slowdown", f"95 of 100 answers began within {first}")
    # Against least values alone, a canary that answers to the end would look slow.
    token = _slower(rule, canary.token_seconds, stable.token_seconds, stable.sure_token_seconds)
    if token is not None:
        return Verdict("slowdown", f"95 of 100 answers took for each further token up to {token}")
    return None


def _slower(rule: Rule, canary: Collection[float], *stable: Collection[float]) -> str | None:
    """Return how much slower the canary is than the slowest of ``stable``, None if it is not by the rule."""
    own = quantile(canary, SLOW_SHARE)
    other = max(quantile(times, SLOW_SHARE) or 0.0 for times in stable)
    fewest = min(len(times) for times in (canary, *stable))
    if not rule.max_slowdown or not own or not other or fewest < rule.min_requests:
        return None
    if own <= rule.max_slowdown * other:
        return None
    return f"{own:.3g} s, and {other:.3g} s with stable: more than {rule.max_slowdown:g} times as long"


def _thumbs(rule: Rule, canary: Tally, stable: Tally) -> Verdict | None:
    given = canary.thumbs_up + canary.thumbs_down
    own, other = canary.thumbs_down_ratio, stable.thumbs_down_ratio or 0.0
    if own is None or given < rule.min_thumbs or own <= max(rule.max_thumbs_down, other):
        return None
    text = f"{canary.thumbs_down} of {given} thumbs point down ({own:.1%}; {other:.1%} of stable's)"
    return Verdict("thumbs_down", f"{text}: more than {rule.max_thumbs_down:.1%}")
