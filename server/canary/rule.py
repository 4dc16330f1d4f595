"""The rule by which a canary ends without being asked: errors, slowness, thumbs down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from server.canary.tally import Tally

Decision = Literal["promoted", "rolled_back", "errors", "slowdown", "thumbs_down"]
DECISIONS_OF_THE_RULE: tuple[Decision, ...] = ("errors", "slowdown", "thumbs_down")
SLOW_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Rule:
    """Say how much worse than ``stable`` a canary may be.

    Attributes:
        max_error_ratio: largest share of its requests that may fail, if it is more than of ``stable``.
        max_slowdown: largest 95th percentile of its latency over that of ``stable``; 0: not asked.
        max_thumbs_down: largest share of its thumbs that may point down.
        min_requests: requests before latency is judged, of both; errors are judged as if all others up
            to this number were answered.
        min_thumbs: thumbs before they are judged.
    """

    max_error_ratio: float = 0.05
    max_slowdown: float = 1.5
    max_thumbs_down: float = 0.3
    min_requests: int = 50
    min_thumbs: int = 10


@dataclass(frozen=True, slots=True)
class Verdict:
    """Say why a canary ends: as a word for metrics, and in a sentence for people."""

    decision: Decision
    reason: str


def judged(rule: Rule, canary: Tally, stable: Tally) -> Verdict | None:
    """Return why ``canary`` has to end, or None."""
    return _errors(rule, canary, stable) or _slowdown(rule, canary, stable) or _thumbs(rule, canary)


def _errors(rule: Rule, canary: Tally, stable: Tally) -> Verdict | None:
    certain = canary.errors / max(canary.requests, rule.min_requests)
    own, other = canary.error_ratio or 0.0, stable.error_ratio or 0.0
    if certain <= rule.max_error_ratio or own <= other:
        return None
    text = f"{canary.errors} of {canary.requests} requests failed ({own:.1%}; {other:.1%} of stable's)"
    return Verdict("errors", f"{text}: more than {rule.max_error_ratio:.1%} of at least {rule.min_requests}")


def _slowdown(rule: Rule, canary: Tally, stable: Tally) -> Verdict | None:
    own, other = canary.seconds_at(SLOW_SHARE), stable.seconds_at(SLOW_SHARE)
    fewest = min(len(canary.seconds), len(stable.seconds))
    if not rule.max_slowdown or not own or not other or fewest < rule.min_requests:
        return None
    if own <= rule.max_slowdown * other:
        return None
    text = f"95 of 100 answers took up to {own:.3f} s, and {other:.3f} s with stable"
    return Verdict("slowdown", f"{text}: more than {rule.max_slowdown:g} times as long")


def _thumbs(rule: Rule, canary: Tally) -> Verdict | None:
    given = canary.thumbs_up + canary.thumbs_down
    ratio = canary.thumbs_down_ratio
    if ratio is None or given < rule.min_thumbs or ratio <= rule.max_thumbs_down:
        return None
    text = f"{canary.thumbs_down} of {given} thumbs point down ({ratio:.1%})"
    return Verdict("thumbs_down", f"{text}: more than {rule.max_thumbs_down:.1%}")
