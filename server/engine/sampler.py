"""Pick each row's next token from its logits."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from server.engine.detokenizer import TokenTexts
from server.engine.protocol import Sampling, TokenLogprob, TopLogprob
from server.engine.sequence import Sequence

_GREEDY_BELOW = 1e-5
_NUCLEUS_CANDIDATES = 512


@dataclass(frozen=True, slots=True)
class Picked:
    """Hold one row's token; ``healthy`` is false when the logits were not finite."""

    token_id: int
    healthy: bool
    logprob: TokenLogprob | None = None


def make_generator(sampling: Sampling) -> torch.Generator | None:
    """Give a request its own random stream, seeded if it asks for it; None for greedy requests."""
    if sampling.temperature < _GREEDY_BELOW:
        return None
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed & (2**63 - 1))
    return generator


class Sampler:
    """Sample a batch whose rows each have their own settings."""

    def __init__(self, texts: TokenTexts) -> None:
        self.texts = texts

    def pick(self, logits: torch.Tensor, rows: Rows[Sequence]) -> list[Picked]:
        """Choose a token for every row.

        Args:
            logits: ``[B, V]``, any float type; not changed.
            rows: the B sequences, in order.
        """
        raw = logits.float()
        scores = self._penalize(raw, rows)
        best, ids = scores.max(dim=-1)
        healthy = torch.isfinite(best).tolist()
        tokens = ids.tolist()
        for index, row in enumerate(rows):
            if row.generator is not None and healthy[index]:
                tokens[index] = draw(scores[index], row.sampling, row.generator)
        logprobs = self._logprobs(raw, rows, tokens, healthy)
        return [
            Picked(token, ok, logprobs.get(index))
            for index, (token, ok) in enumerate(zip(tokens, healthy, strict=True))
        ]

    def _penalize(self, logits: torch.Tensor, rows: Rows[Sequence]) -> torch.Tensor:
        """Subtract ``frequency_penalty * count + presence_penalty`` from tokens already generated."""
        touched = [(index, row) for index, row in enumerate(rows) if row.counts]
        if not touched:
            return logits
        logits = logits.clone()
        for index, row in touched:
            ids = torch.tensor(list(row.counts), device=logits.device)
            counts = torch.tensor(list(row.counts.values()), dtype=logits.dtype, device=logits.device)
            sampling = row.sampling
            logits[index, ids] -= counts * sampling.frequency_penalty + sampling.presence_penalty
        return logits

    def _logprobs(
        self, logits: torch.Tensor, rows: Rows[Sequence], tokens: list[int], healthy: list[bool]
    ) -> dict[int, TokenLogprob]:
        """Report log probabilities of the untouched distribution for the rows that ask."""
        asking = [i for i, row in enumerate(rows) if row.sampling.logprobs is not None and healthy[i]]
        if not asking:
            return {}
        part = torch.log_softmax(logits[asking], dim=-1)
        widest = max(1, *(rows[i].sampling.logprobs or 0 for i in asking))
        top_values, top_ids = (tensor.tolist() for tensor in part.topk(min(widest, part.shape[-1]), dim=-1))
        found: dict[int, TokenLogprob] = {}
        for place, index in enumerate(asking):
            count = rows[index].sampling.logprobs or 0
            top = tuple(
                self._top(token, value)
                for token, value in zip(top_ids[place][:count], top_values[place][:count], strict=True)
            )
            token = tokens[index]
            own = self._top(token, float(part[place, token]))
            found[index] = TokenLogprob(own.token, token, own.logprob, own.bytes, top)
        return found

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        return TopLogprob(self.texts.text_of(token_id), logprob, tuple(self.texts.bytes_of(token_id)))


def draw(scores: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw from ``softmax(scores / temperature)`` cut to the nucleus ``top_p``; ``scores`` is ``[V]``.

    The draw is ``argmax(p / e)`` with e exponential noise, which needs no cumulative sum over the vocabulary.
    """
    probabilities = torch.softmax(scores / sampling.temperature, dim=-1)
    if sampling.top_p >= 1.0:
        return int((probabilities / _noise(probabilities, generator)).argmax())
    values, ids = probabilities.topk(min(_NUCLEUS_CANDIDATES, probabilities.numel()))
    cumulative = values.cumsum(-1)
    if float(cumulative[-1]) < sampling.top_p:
        values, ids = probabilities.sort(descending=True)
        cumulative = values.cumsum(-1)
    values = torch.where(cumulative - values < sampling.top_p, values, torch.zeros_like(values))
    return int(ids[(values / _noise(values, generator)).argmax()])


def _noise(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.empty(like.shape, dtype=torch.float32).exponential_(generator=generator)
    return noise.clamp_min_(1e-30).to(like.device)
