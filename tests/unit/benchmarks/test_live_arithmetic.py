"""What the serving programs compute from what they saw."""

from __future__ import annotations

import math
import os

import pytest

from benchmarks.beside.__main__ import order_of
from benchmarks.beside.worker import steps_per_second
from benchmarks.gateway.__main__ import overheads
from benchmarks.gateway.hosting import LoadResult
from benchmarks.live.figures import Spread, gaps_of, percentile, poisson_moments, ratios
from benchmarks.live.load import Answer, _take
from benchmarks.live.process import sample_of
from benchmarks.live.questions import Asked, mixed, png_of
from benchmarks.live.quiet import OtherLoad, busy_seconds, process_seconds
from benchmarks.swap.__main__ import plan_kinds, plan_phases, share_of
from benchmarks.swap.checking import Changed, margin_where_parted
from benchmarks.swap.phases import Phase
from benchmarks.swap.report import failures_of, report_of
from benchmarks.swap.swapping import Swap

ASKED = Asked(0, "What?", 8)


def answer(sent: float, version: str, *moments: float, failure: str = "") -> Answer:
    return Answer(ASKED, sent, version, "text", len(moments), "stop", [sent + at for at in moments], failure)


def test_percentiles_gaps_and_ratios():
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile(list(range(100)), 0.99) == 99
    assert math.isnan(percentile([], 0.99))
    assert gaps_of([1.0, 1.5, 3.0]) == [0.5, 1.5]
    assert ratios([2.0, 3.0], [1.0, 2.0]) == [2.0, 1.5]
    assert math.isnan(ratios([1.0], [0.0])[0])
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0], [])


def test_a_spread_leaves_out_what_was_not_measured():
    spread = Spread.of([1.0, math.nan, 3.0])
    assert (spread.median, spread.least, spread.most, spread.count) == (2.0, 1.0, 3.0, 2)
    assert spread.shown(1000, 0, " ms") == "2000 ms (1000 to 3000)"
    assert math.isnan(Spread.of([]).median)


def test_arrivals_repeat_with_their_seed_and_keep_their_rate():
    moments = poisson_moments(5.0, 400.0, 1)
    assert moments == poisson_moments(5.0, 400.0, 1) != poisson_moments(5.0, 400.0, 2)
    assert moments == sorted(moments)
    assert moments[-1] < 400.0
    assert 1800 < len(moments) < 2200


def test_questions_repeat_and_pictures_differ():
    assert mixed(8, 4, 8, 1) == mixed(8, 4, 8, 1) != mixed(8, 4, 8, 2)
    assert len({png_of(number) for number in range(300)}) == 300


def test_a_stream_becomes_an_answer():
    found = Answer(ASKED)
    head = '{"system_fingerprint":"v1","choices":'
    _take(f'{head}[{{"delta":{{"role":"assistant","content":""}},"finish_reason":null}}]}}'.encode(), found)
    assert found.moments == []
    _take(f'{head}[{{"delta":{{"content":"a"}},"finish_reason":null}}]}}'.encode(), found)
    _take(f'{head}[{{"delta":{{}},"finish_reason":"stop"}}]}}'.encode(), found)
    _take(f'{head}[],"usage":{{"completion_tokens":2}}}}'.encode(), found)
    _take(b"[DONE]", found)
    assert (found.text, found.version, found.tokens, found.finish) == ("a", "v1", 2, "stop")
    assert len(found.moments) == 1
    _take(b'{"error":{"message":"broken off"}}', found)
    assert found.failure == "broken off"


def test_a_sample_without_labels_is_found():
    text = 'a_sum{x="1"} 3.0\na_sum 2.5\na_sum_more 9\n'
    assert sample_of(text, "a_sum") == 2.5
    assert sample_of(text, "b") == 0.0


def test_other_load_is_what_the_machine_did_and_we_did_not():
    ticks = os.sysconf("SC_CLK_TCK")
    assert busy_seconds(f"cpu  {ticks} {ticks} {ticks} 9 9 0 0 {ticks} 0 0\ncpu0 1 2") == 4.0
    stat = f"7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 {2 * ticks} {ticks} 0 0 20 0"
    assert process_seconds(stat) == 3.0
    assert OtherLoad(lambda: (os.getpid(), None)).cores() >= 0
    assert math.isnan(OtherLoad(lambda: (2**30,)).cores())


def test_the_plan_swaps_every_version_once():
    kinds = plan_kinds(20)
    assert (len(kinds), kinds.count("rolled back"), kinds.count("refused")) == (20, 1, 1)
    shares = [share_of(kinds, number, 3) for number in range(3)]
    assert [kind for share in shares for kind in share] == kinds
    assert {len(share) for share in shares} == {6, 7}
    planned = plan_phases(["embedded"], 2)
    assert planned == [
        ("embedded", "steady", 0),
        ("embedded", "swaps", 0),
        ("embedded", "swaps", 1),
        ("embedded", "steady", 1),
    ]


def phases() -> list[Phase]:
    steady = Phase("embedded", "steady", 0, 0.0, [answer(1.0, "v1", 0.1, 0.2, 0.3)])
    swap = Swap("v2", "promoted", 1000, publish=1.0, before="v1", published=1.2, moved=1.3)
    swap.last_old, swap.first_new, swap.first_token = 1.5, 1.52, 1.7
    refused = Swap("v3", "refused", 1000, publish=3.0)
    answers = [
        answer(1.0, "v1", 0.1, 0.3),
        answer(1.6, "v2", 0.1),
        answer(1.7, "v1", 0.1),
        answer(1.9, "v2", 0.1),
    ]
    return [steady, Phase("embedded", "swaps", 0, 0.0, answers, [swap, refused])]


def test_the_report_pairs_the_phases_of_a_round():
    report = report_of(phases(), "embedded")
    assert report.ratio.median == pytest.approx(2.0)
    assert report.pooled_ratio == pytest.approx(2.0)
    assert report.flip.median == pytest.approx(0.02)
    assert report.to_answer.median == pytest.approx(0.7)
    assert report.overlap == pytest.approx(0.1)
    assert report.flip.count == 1


def test_a_version_whose_probe_fails_must_never_answer():
    found = phases()
    assert failures_of(found) == []
    found[1].answers.append(answer(3.5, "v3", 0.1))
    found[0].answers.append(answer(0.0, "", failure="refused"))
    assert failures_of(found) == ["refused", "v3 answered though its probe fails"]


def test_answers_part_at_the_token_that_the_other_one_does_not_follow():
    def token(text: str, *logprobs: float) -> dict:
        return {"bytes": list(text.encode()), "top_logprobs": [{"logprob": value} for value in logprobs]}

    tokens = [token("a", -0.1, -3.0), token("b", -0.7, -0.705)]
    assert margin_where_parted(tokens, "ac") == pytest.approx(0.005)
    assert margin_where_parted(tokens, "x") == pytest.approx(2.9)
    assert margin_where_parted(tokens, "ab, and more") == math.inf
    assert Changed("v1", "ac", "ab", 0.005).near_tie
    assert not Changed("v1", "x", "ab", 2.9).near_tie


def test_the_overhead_is_what_http_adds_to_the_time_of_a_token():
    http, direct = LoadResult(100, 1.1, 0.1, 0.2), LoadResult(100, 1.0, 0.0, 0.2)
    assert overheads([http], [direct]) == [pytest.approx(0.1)]


def test_training_speed_counts_whole_reports_within_the_span():
    steps = [(0.0, 0), (1.0, 10), (2.0, 20), (4.0, 24), (9.0, 100)]
    assert steps_per_second(steps, 0.5, 5.0) == pytest.approx(14 / 3)
    assert math.isnan(steps_per_second(steps, 8.0, 9.5))
    assert {order_of(number)[0] for number in range(3)} == {"serving", "both", "training"}
