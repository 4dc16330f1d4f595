"""The rule: what ends a canary, what does not, and from how many requests on."""

from __future__ import annotations

import pytest

from server.canary.pace import FEWEST_FURTHER, Latency, Pace
from server.canary.rule import DECISIONS_OF_THE_RULE, Rule, judged
from server.canary.tally import Tally, quantile
from server.metrics import Metrics
from server.settings import GatewaySettings


def seen(good: int = 0, bad: int = 0, *, seconds: float = 0.1, up: int = 0, down: int = 0) -> Tally:
    tally = Tally(thumbs_up=up, thumbs_down=down)
    for number in range(good + bad):
        tally.add(Latency(seconds, seconds), failed=number >= good)
    return tally


def answered(*answers: tuple[int, float, float]) -> Tally:
    """Return what was seen of answers that have (tokens, time to the first, time of each further one)."""
    tally = Tally()
    for answer in answers:
        tally.add(answered_once(*answer), failed=False)
    return tally


def answered_once(tokens: int, first: float, further: float) -> Latency:
    pace = Pace(0.0)
    for token in range(tokens):
        pace.note(0, token + 1, first + further * token, is_last=token == tokens - 1)
    return pace.measured(first + further * tokens + 1.0)


def decision(canary: Tally, stable: Tally, rule: Rule | None = None) -> str | None:
    verdict = judged(rule or Rule(), canary, stable)
    return None if verdict is None else verdict.decision


@pytest.mark.parametrize(
    ("canary", "ends"),
    [
        (seen(48, 2), False),
        (seen(47, 3), True),
        (seen(0, 2), False),
        (seen(0, 3), True),
        (seen(950, 50), False),
        (seen(949, 51), True),
        (seen(), False),
    ],
)
def test_errors_end_it_as_soon_as_the_ratio_is_certain(canary: Tally, ends: bool):
    assert decision(canary, seen(1000)) == ("errors" if ends else None)


def test_errors_that_stable_has_as_well_are_not_its_own():
    assert decision(seen(40, 10), seen(400, 100)) is None
    assert decision(seen(39, 11), seen(400, 100)) == "errors"


def test_latency_is_judged_from_the_least_number_of_both_on():
    slow = seen(50, seconds=0.16)
    assert decision(slow, seen(50)) == "slowdown"
    assert decision(seen(49, seconds=0.16), seen(50)) is None
    assert decision(slow, seen(49)) is None
    assert decision(seen(50, seconds=0.15), seen(50)) is None
    assert decision(slow, seen(50), Rule(max_slowdown=0)) is None


def test_a_few_slow_answers_are_not_the_95th_percentile():
    mixed = seen(95)
    for _ in range(5):
        mixed.add(Latency(9.0, 9.0), failed=False)
    assert decision(mixed, seen(100)) is None
    mixed.add(Latency(9.0, 9.0), failed=False)
    assert decision(mixed, seen(100)) == "slowdown"


def test_one_asker_with_long_answers_is_no_slowdown():
    short, long = (10, 0.1, 0.02), (200, 0.1, 0.02)
    canary = answered(*[long if number % 10 == 0 else short for number in range(50)])
    whole, usual = quantile(canary.seconds, 0.95), quantile(answered(short).seconds, 0.95)
    assert (whole or 0.0) > 3 * (usual or 0.0) > 0
    assert decision(canary, answered(*[short] * 450)) is None


def test_a_slow_first_or_further_token_ends_it_whatever_the_length():
    stable = answered(*[(100, 0.1, 0.02)] * 50)
    assert decision(answered(*[(10, 0.2, 0.02)] * 50), stable) == "slowdown"
    assert decision(answered(*[(10, 0.1, 0.04)] * 50), stable) == "slowdown"
    assert decision(answered(*[(10, 0.14, 0.028)] * 50), stable) is None
    assert decision(answered(*[(10, 0.1, 0.04)] * 49), stable) is None
    verdict = judged(Rule(), answered(*[(10, 0.1, 0.04)] * 50), stable)
    assert verdict is not None
    assert (
        "for each further token up to 0.04 s, and 0.02 s with stable: more than 1.5 times" in verdict.reason
    )


def test_gaps_of_very_short_answers_are_chance():
    stable = answered(*[(100, 0.1, 0.02)] * 50)
    assert decision(answered(*[(FEWEST_FURTHER, 0.1, 0.2)] * 50), stable) is None
    assert decision(answered(*[(FEWEST_FURTHER + 1, 0.1, 0.2)] * 50), stable) == "slowdown"


def given_up(tokens: int, first: float, further: float, waited: float) -> Latency:
    """Return what is known of an answer that its client left ``waited`` seconds behind its last token."""
    pace = Pace(0.0)
    for token in range(tokens):
        pace.note(0, token + 1, first + further * token, is_last=False)
    return pace.measured(first + further * (tokens - 1) + waited)


def test_askers_who_leave_early_are_no_slowdown_and_a_hang_is():
    stable = answered(*[(100, 0.1, 0.02)] * 50)
    early, hung = Tally(), Tally()
    for _ in range(50):
        early.add(given_up(2, 0.1, 0.09, 0.03), failed=False)
        hung.add(given_up(2, 0.1, 0.02, 30.0), failed=False)
    assert decision(early, stable) is None
    assert decision(hung, stable) == "slowdown"
    assert quantile(hung.token_seconds, 0.95) == pytest.approx(30.02 / FEWEST_FURTHER)


def test_a_canary_that_answers_to_the_end_is_no_slower_than_one_that_is_left():
    canary = answered(*[(100, 0.1, 0.02)] * 50)
    stable = answered(*[(100, 0.1, 0.02)] * 49)
    for _ in range(2000 - 49):
        stable.add(given_up(2, 0.1, 0.02, 0.01), failed=False)
    assert decision(canary, stable) is None, "too few of stable's to compare with"
    stable.add(answered_once(100, 0.1, 0.02), failed=False)
    assert (quantile(stable.token_seconds, 0.95) or 1.0) < 0.01
    assert decision(canary, stable) is None
    assert decision(answered(*[(100, 0.1, 0.04)] * 50), stable) == "slowdown"
    for _ in range(200):
        stable.add(given_up(2, 0.1, 0.02, 30.0), failed=False)
    hung = Tally()
    for _ in range(50):
        hung.add(given_up(2, 0.1, 0.02, 30.0), failed=False)
    assert decision(hung, stable) is None, "what hangs stable as well is not its own"


def test_thumbs_are_judged_from_ten_on():
    assert decision(seen(1, up=6, down=3), seen(1)) is None
    assert decision(seen(1, up=7, down=3), seen(1)) is None
    assert decision(seen(1, up=6, down=4), seen(1)) == "thumbs_down"


def test_thumbs_that_stable_has_as_well_are_not_its_own():
    assert decision(seen(1, up=6, down=4), seen(1, up=10, down=90)) is None
    assert decision(seen(1, up=6, down=4), seen(1, up=6, down=4)) is None
    assert decision(seen(1, up=5, down=5), seen(1, up=6, down=4)) == "thumbs_down"


def test_the_rule_says_itself_in_words():
    fails, slow, downs = Rule().in_words()
    assert "more than 5 % of its requests fail, counted as if there were at least 50" in fails
    assert "first token or that for each further one is more than 1.5 times as long as with stable" in slow
    assert "more than 30 % of its thumbs point down, from 10 thumbs on" in downs
    assert Rule(max_slowdown=0).in_words() == [fails, downs]


def test_reasons_are_sentences_with_the_numbers():
    verdict = judged(Rule(), seen(47, 3), seen(100))
    assert verdict is not None
    assert "3 of 50 requests failed (6.0%; 0.0% of stable's)" in verdict.reason


def test_every_decision_is_a_series_from_the_start():
    shown = Metrics().render().decode()
    for name in ("promoted", "rolled_back", *DECISIONS_OF_THE_RULE):
        assert f'strata_canary_decisions_total{{decision="{name}"}} 0.0' in shown


def test_settings_become_the_rule():
    settings = GatewaySettings(
        canary_max_error_ratio=0.01,
        canary_max_slowdown=2,
        canary_max_thumbs_down=0.4,
        canary_min_requests=7,
        canary_min_thumbs=3,
    )
    assert settings.canary_rule == Rule(0.01, 2, 0.4, 7, 3)
    assert GatewaySettings().canary_rule == Rule()


def test_quantiles():
    assert quantile([], 0.5) is None
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(range(1, 101), 0.95) == 95
    assert quantile([4.0], 0.95) == 4.0


def test_only_the_latest_latencies_are_kept():
    tally = seen(2000, seconds=9.0)
    for _ in range(2000):
        tally.add(Latency(0.1), failed=False)
    assert (tally.requests, len(tally.seconds), quantile(tally.seconds, 1.0)) == (4000, 2000, 0.1)
