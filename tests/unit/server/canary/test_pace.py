"""What is measured of a request: its choices together, and at least the waiting of one that was given up."""

from __future__ import annotations

from server.canary.pace import Latency, Pace


def test_choices_are_taken_together_from_their_first_tokens_on():
    pace = Pace(started=10.0)
    pace.note(0, 1, 11.0, is_last=False)
    pace.note(1, 2, 12.0, is_last=False)
    pace.note(0, 11, 16.0, is_last=True)
    pace.note(1, 12, 27.0, is_last=True)
    assert pace.measured(30.0) == Latency(whole=20.0, first_token=1.0, token=(5.0 + 15.0) / 20)


def test_without_a_token_the_first_one_took_at_least_until_now():
    assert Pace(started=1.0).measured(31.0) == Latency(whole=30.0, first_token=30.0, token=None)


def test_the_token_that_was_waited_for_counts_as_if_it_came_now():
    pace = Pace(started=0.0)
    for token in range(3):
        pace.note(0, token + 1, 1.0 + token, is_last=False)
    pace.note(0, 11, 11.0, is_last=False)
    assert pace.measured(34.0) == Latency(whole=34.0, first_token=1.0, token=33.0 / 11)


def test_of_few_tokens_and_a_wait_the_least_is_said():
    pace = Pace(started=0.0)
    for token in range(3):
        pace.note(0, token + 1, 1.0 + token, is_last=False)
    assert pace.measured(31.0) == Latency(whole=31.0, first_token=1.0, token=30.0 / 8, is_least=True)
