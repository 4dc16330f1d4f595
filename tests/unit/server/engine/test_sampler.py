"""Each row is sampled by its own settings."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from server.engine.banks import BankSlot
from server.engine.detokenizer import TextStream, TokenTexts
from server.engine.protocol import GenerationRequest, Sampling
from server.engine.sampler import Sampler, draw, make_generator
from server.engine.sequence import Sequence
from tests.tiny_llava import build_tokenizer


@pytest.fixture(scope="module")
def texts() -> TokenTexts:
    return TokenTexts(build_tokenizer())


def row(texts: TokenTexts, **settings: Any) -> Sequence:
    sampling = Sampling(**settings)
    return Sequence(
        request=GenerationRequest("r", [1], sampling=sampling),
        emit=lambda _: None,
        stream=TextStream(texts),
        max_tokens=1,
        lease=BankSlot(),
        generator=make_generator(sampling),
    )


def test_greedy_rows_and_logprobs(texts: TokenTexts) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [4.0, 0.0, 0.0, 0.0]])
    picks = Sampler(texts).pick(logits, [row(texts, logprobs=2), row(texts)])
    assert [pick.token_id for pick in picks] == [1, 0]
    entry = picks[0].logprob
    assert entry is not None
    expected = torch.log_softmax(logits[0], -1)
    assert entry.logprob == pytest.approx(float(expected[1]))
    assert [top.logprob for top in entry.top] == pytest.approx([float(expected[1]), float(expected[3])])
    assert picks[1].logprob is None


def test_logprobs_are_of_the_picked_token_even_if_unlikely(texts: TokenTexts) -> None:
    one = row(texts, logprobs=1, temperature=50.0, seed=3)
    logits = torch.tensor([[9.0, 0.0, 0.0, 0.0]])
    picks = [Sampler(texts).pick(logits, [one])[0] for _ in range(30)]
    odd = next(pick for pick in picks if pick.token_id != 0)
    assert odd.logprob is not None
    assert odd.logprob.token_id == odd.token_id
    assert odd.logprob.logprob < odd.logprob.top[0].logprob


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature=1.0)
    seen = Counter(draw(probabilities.log(), sampling, generator) for _ in range(4000))
    for token, share in enumerate(probabilities.tolist()):
        assert seen[token] / 4000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))


@pytest.mark.parametrize(("top_p", "allowed"), [(0.49, {0}), (0.79, {0, 1}), (0.81, {0, 1, 2}), (1e-9, {0})])
def test_nucleus(top_p: float, allowed: set[int]) -> None:
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(1)
    sampling = Sampling(temperature=1.0, top_p=top_p)
    assert {draw(scores, sampling, generator) for _ in range(400)} == allowed


def test_nucleus_wider_than_the_first_candidates() -> None:
    generator = torch.Generator().manual_seed(1)
    sampling = Sampling(temperature=1.0, top_p=0.999)
    drawn = {draw(torch.zeros(4000), sampling, generator) for _ in range(300)}
    assert len(drawn) > 250


def test_penalties_lower_what_was_said(texts: TokenTexts) -> None:
    one = row(texts, frequency_penalty=1.0, presence_penalty=0.5)
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    said = []
    for _ in range(4):
        pick = Sampler(texts).pick(logits, [one])[0]
        one.append(pick.token_id)
        said.append(pick.token_id)
    assert said == [0, 1, 0, 2]
    assert logits.tolist() == [[3.0, 2.0, 1.0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_rows_are_marked(texts: TokenTexts, value: float) -> None:
    logits = torch.tensor([[0.0, value, 1.0], [0.0, 2.0, 1.0]])
    rows = [row(texts, temperature=1.0, seed=1, logprobs=1), row(texts, logprobs=1)]
    picks = Sampler(texts).pick(logits, rows)
    assert [pick.healthy for pick in picks] == [False, True]
    assert picks[1].token_id == 1


def test_seeds(texts: TokenTexts) -> None:
    logits = torch.zeros(1, 300)

    def say(seed: int | None) -> list[int]:
        one = row(texts, temperature=1.0, seed=seed)
        return [Sampler(texts).pick(logits, [one])[0].token_id for _ in range(8)]

    assert say(4) == say(4)
    assert say(4) != say(5)
    assert say(None) != say(None)
    assert say(-1) == say(-1)
