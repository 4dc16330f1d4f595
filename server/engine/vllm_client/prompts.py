"""Write a request the way vLLM takes it: token ids, pictures as projected tokens, sampling, coefficients."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from vllm import SamplingParams
from vllm.inputs import mm_input, tokens_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.sampling_params import RequestOutputKind

from server.engine.protocol import GenerationRequest, Sampling
from server.engine.vllm_plugin.requests import Gated, to_extra_args

_MODALITY = "image"
_GREEDY_BELOW = 0.01
"""vLLM raises lower temperatures to this, and warns each time; by then only near ties are not greedy."""


def engine_prompt(request: GenerationRequest, image_token_id: int, gated: Gated | None) -> Any:
    """Return the prompt, rendered already: vLLM has nothing left to tokenize or to encode.

    The keys and values of a prompt are known by its tokens, its pictures' digests and a salt; the salt is
    the digest of version and coefficients, so that no answer is computed from another version's memory.

    Args:
        request: the request.
        image_token_id: the placeholder of one projected token.
        gated: what it brings to the workers, None for the base.
    """
    salt = None
    if gated is not None:
        salt = hashlib.sha256(request.version.encode() + b"|" + gated.salt).hexdigest()
    ids = list(request.input_ids)
    if not request.images:
        return tokens_input(ids, cache_salt=salt)
    field = MultiModalBatchedField()
    items = [
        MultiModalKwargsItem({"image_embeds": MultiModalFieldElem(image.embeds.detach().cpu(), field)})
        for image in request.images
    ]
    return mm_input(
        ids,
        MultiModalKwargsItems({_MODALITY: items}),
        {_MODALITY: [image.digest for image in request.images]},
        {_MODALITY: list(_places(request, image_token_id))},
        cache_salt=salt,
    )


def _places(request: GenerationRequest, image_token_id: int) -> Iterator[PlaceholderRange]:
    position = 0
    for image in request.images:
        position = request.input_ids.index(image_token_id, position)
        length = image.embeds.shape[-2]
        yield PlaceholderRange(offset=position, length=length)
        position += length


def sampling_params(
    sampling: Sampling, max_tokens: int, end_ids: frozenset[int], gated: Gated | None
) -> SamplingParams:
    """Return vLLM's settings of a request; text, stop strings and end tokens stay with the gateway.

    Args:
        sampling: how tokens are picked.
        max_tokens: the most tokens of the answer.
        end_ids: tokens that end a turn.
        gated: what the request brings to the workers, None for the base.
    """
    greedy = sampling.temperature < _GREEDY_BELOW
    return SamplingParams(
        temperature=0.0 if greedy else sampling.temperature,
        top_p=1.0 if greedy else sampling.top_p,
        seed=None if greedy or sampling.seed is None else sampling.seed & (2**63 - 1),
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        max_tokens=max_tokens,
        logprobs=sampling.logprobs or 0,  # always, for they alone tell that the output was no number
        ignore_eos=True,
        stop_token_ids=[] if sampling.ignore_eos else sorted(end_ids),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=None if gated is None else to_extra_args(gated),
        skip_clone=True,
    )
