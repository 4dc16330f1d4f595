"""When the tokens of one request came: versions are compared by what is alike in short and long answers."""

from __future__ import annotations

from dataclasses import dataclass, field

FEWEST_FURTHER = 8
"""Further tokens from which on their mean time says more than chance."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Say how long one request took, in seconds.

    Attributes:
        whole: from the request to the end of its answer.
        first_token: from the request to its first token.
        token: mean time of each further token; None where too few came.
        is_least: too few came before the answer was given up: ``token`` is the least that it can be.
    """

    whole: float
    first_token: float | None = None
    token: float | None = None
    is_least: bool = False


@dataclass(slots=True)
class _Choice:
    """One answer as it grows: the first and the latest moment, and how many tokens there were at each."""

    began: float
    at_first: int
    latest: float
    tokens: int
    has_ended: bool = False


@dataclass(slots=True)
class Pace:
    """Follow the choices of one request; moments are those of ``time.perf_counter``."""

    started: float
    _choices: dict[int, _Choice] = field(default_factory=dict)

    def note(self, choice: int, tokens: int, now: float, *, is_last: bool) -> None:
        """Take in that ``choice`` has ``tokens`` tokens by ``now``."""
        seen = self._choices.setdefault(choice, _Choice(now, tokens, now, tokens))
        seen.latest, seen.tokens, seen.has_ended = now, tokens, is_last

    def measured(self, now: float) -> Latency:
        """Return how long it took by ``now``.

        What has not come is counted as if it came now, so a request that its client gave up says at least how
        long it had waited: for the first token, or for the next one. Of further tokens it counts as if it had
        ``FEWEST_FURTHER``: a short one says little about a fast version, and enough about one that hangs.
        """
        first = min((seen.began for seen in self._choices.values()), default=now)
        spent, further, is_awaited = self._behind_the_first(now)
        is_few = further < FEWEST_FURTHER
        token = None if is_few and not is_awaited else spent / max(further, FEWEST_FURTHER)
        return Latency(now - self.started, first - self.started, token, is_least=is_few and is_awaited)

    def _behind_the_first(self, now: float) -> tuple[float, int, bool]:
        """Return the seconds and tokens behind the first of all choices, and whether one was given up."""
        spent, further, is_awaited = 0.0, 0, False
        for seen in self._choices.values():
            spent += (seen.latest if seen.has_ended else now) - seen.began
            further += seen.tokens - seen.at_first + (0 if seen.has_ended else 1)
            is_awaited = is_awaited or not seen.has_ended
        return spent, further, is_awaited
