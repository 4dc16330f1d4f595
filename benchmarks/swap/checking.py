"""Ask every question again of the version that answered it, when the server is quiet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.live.load import Answer, ask, at_most
from benchmarks.telling import Teller

_CONCURRENT = 4
NEAR_TIE = 0.01
"""Two tokens whose log probabilities differ by less may change places with the rows of a batch."""


@dataclass(frozen=True, slots=True)
class Changed:
    """Hold an answer that the quiet server gives differently.

    Attributes:
        margin: by how much the two best tokens differ where the answers part, in natural logarithms.
    """

    version: str
    text: str
    quiet_text: str
    margin: float

    @property
    def near_tie(self) -> bool:
        """Tell whether the other answer is as good: the batch that a row runs in decides it."""
        return self.margin < NEAR_TIE


async def find_changed(url: str, answers: Sequence[Answer], teller: Teller) -> list[Changed]:
    """Return the answers that their own version does not repeat, version by version.

    What differs among four at a time is asked again alone.
    """
    changed: list[Changed] = []
    for version in dict.fromkeys(answer.version for answer in answers):
        own = [answer for answer in answers if answer.version == version]
        model = f"strata@{version}"
        again = await at_most(url, [a.asked for a in own], [model] * len(own), _CONCURRENT, teller.step)
        for answer, quiet in zip(own, again, strict=True):
            if _same(answer, quiet):
                continue
            alone = await ask(url, answer.asked, model)
            if alone.failure:
                changed.append(Changed(version, answer.text, alone.failure, float("inf")))
            elif not _same(answer, alone):
                margin = await _margin(url, answer, model)
                changed.append(Changed(version, answer.text, alone.text, margin))
    return changed


def _same(one: Answer, other: Answer) -> bool:
    return not other.failure and (one.text, one.finish, one.version) == (
        other.text,
        other.finish,
        other.version,
    )


async def _margin(url: str, answer: Answer, model: str) -> float:
    """Return the margin of the quiet answer's token at which ``answer`` goes another way."""
    body = {**answer.asked.body(model), "stream": False, "logprobs": True, "top_logprobs": 2}
    del body["stream_options"]
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:
        found = (await client.post("/v1/chat/completions", json=body)).json()
    return margin_where_parted(found["choices"][0]["logprobs"]["content"], answer.text)


def margin_where_parted(tokens: Sequence[dict[str, Any]], other: str) -> float:
    """Return the margin between the two best tokens at the first token that ``other`` does not follow.

    Args:
        tokens: an answer's tokens as OpenAI's ``logprobs.content`` has them, with ``top_logprobs`` of two.
        other: the text of another answer to the same question.
    """
    text = b""
    for token in tokens:
        text += bytes(token["bytes"])
        if not other.encode().startswith(text):
            best, second = (top["logprob"] for top in token["top_logprobs"][:2])
            return best - second
    return float("inf")
