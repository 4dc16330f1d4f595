"""Turn what vLLM puts out into chunks: text without half characters, stop strings, log probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from server.engine.detokenizer import TextStream, TokenTexts
from server.engine.protocol import Chunk, FinishReason, GenerationRequest, TokenLogprob, TopLogprob

_NOT_FINITE = "the model's output was not finite"


class Answer:
    """Follow one request's output; ``done`` once a chunk ended it, ``failed`` if that told an error."""

    def __init__(self, request: GenerationRequest, texts: TokenTexts, end_ids: frozenset[int]) -> None:
        self._request, self._texts = request, texts
        self._end_ids = frozenset() if request.sampling.ignore_eos else end_ids
        self._stream = TextStream(texts, request.sampling.stop)
        self.prompt_tokens = len(request.input_ids)
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.done = False
        self.failed = False

    def take(self, output: Any) -> list[Chunk]:
        """Return one chunk for each token that ``output``, vLLM's RequestOutput, brings."""
        completion = output.outputs[0]
        self.cached_tokens = max(self.cached_tokens, output.num_cached_tokens or 0)
        logprobs = completion.logprobs or [None] * len(completion.token_ids)
        chunks: list[Chunk] = []
        for place, (token, found) in enumerate(zip(completion.token_ids, logprobs, strict=True)):
            last = place == len(completion.token_ids) - 1
            chunks.append(self._chunk(token, found, completion.finish_reason if last else None))
            if self.done:
                return chunks
        if completion.finish_reason is not None and not self.done:  # aborted, or broken off without a token
            reason: FinishReason = "abort" if completion.finish_reason == "abort" else "error"
            chunks.append(
                self.end(reason, None if reason == "abort" else "the engine gave up on the request")
            )
        return chunks

    def end(self, reason: FinishReason, error: str | None = None, *, not_finite: bool = False) -> Chunk:
        """Return the last chunk of an answer that ends without a token."""
        self.done, self.failed = True, reason == "error"
        return self._make("", (), None, reason, error, not_finite=not_finite)

    def _chunk(self, token: int, found: Mapping[int, Any] | None, finished: str | None) -> Chunk:
        self.completion_tokens += 1
        if found is not None and not math.isfinite(found[token].logprob):
            return self.end("error", _NOT_FINITE, not_finite=True)
        ended = token in self._end_ids
        text = "" if ended else self._stream.push(token)
        reason: FinishReason | None = None
        if ended or self._stream.stopped or finished == "stop":
            reason = "stop"
        elif finished == "length":
            reason = "length"
        if reason is not None:
            text += self._stream.finish()
            self.done = True
        asked = self._request.sampling.logprobs is not None
        logprob = self._logprob(token, found) if asked and found is not None and not ended else None
        return self._make(text, () if ended else (token,), logprob, reason, None)

    def _make(
        self,
        text: str,
        tokens: Sequence[int],
        logprob: TokenLogprob | None,
        reason: FinishReason | None,
        error: str | None,
        *,
        not_finite: bool = False,
    ) -> Chunk:
        return Chunk(
            text=text,
            token_ids=tuple(tokens),
            logprobs=None if logprob is None else (logprob,),
            finish_reason=reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            error=error,
            not_finite=not_finite,
        )

    def _logprob(self, token: int, found: Mapping[int, Any]) -> TokenLogprob:
        count = self._request.sampling.logprobs or 0
        ranked = sorted(found.items(), key=lambda item: -item[1].logprob)[:count]
        top = tuple(self._top(candidate, entry.logprob) for candidate, entry in ranked)
        own = self._top(token, found[token].logprob)
        return TokenLogprob(own.token, token, own.logprob, own.bytes, top)

    def _top(self, token: int, logprob: float) -> TopLogprob:
        return TopLogprob(self._texts.text_of(token), logprob, tuple(self._texts.bytes_of(token)))
