"""Check a request before it enters the engine."""

from __future__ import annotations

import math

from adapter_store.errors import InputError
from server.engine.protocol import GenerationRequest, Sampling

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16


def check_request(
    request: GenerationRequest, *, vocab_size: int, image_token_id: int, max_model_len: int
) -> None:
    """Refuse a request that cannot be computed.

    Raises:
        InputError: an empty or too long prompt, unknown token ids, pictures that do not match their
        placeholders, or
            sampling settings out of range; ``param`` names the field.
    """
    ids = request.input_ids
    if not ids:
        raise InputError("the prompt is empty; send at least one token", param="messages")
    if len(ids) >= max_model_len:
        raise InputError(
            f"the prompt has {len(ids)} tokens, but prompt and answer share {max_model_len}; shorten it",
            param="messages",
        )
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise InputError(f"token ids must lie between 0 and {vocab_size - 1}", param="messages")
    places = sum(1 for token in ids if token == image_token_id)
    features = sum(image.embeds.shape[-2] for image in request.images)
    if places != features:
        raise InputError(
            f"{len(request.images)} pictures bring {features} embeddings for {places} placeholders",
            param="messages",
        )
    if request.gate_start < 0:
        raise InputError("gate_start must not be negative", param="gate_start")
    check_sampling(request.sampling)


def check_sampling(sampling: Sampling) -> None:
    """Refuse sampling settings that are out of range or not finite."""
    if not (math.isfinite(sampling.temperature) and 0 <= sampling.temperature <= 100):
        raise InputError("temperature must lie between 0 and 100", param="temperature")
    if not 0 < sampling.top_p <= 1:
        raise InputError("top_p must be greater than 0 and at most 1", param="top_p")
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise InputError("max_tokens must be at least 1", param="max_tokens")
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= MAX_LOGPROBS:
        raise InputError(f"logprobs must lie between 0 and {MAX_LOGPROBS}", param="top_logprobs")
    for name in ("frequency_penalty", "presence_penalty"):
        if not -2 <= getattr(sampling, name) <= 2:
            raise InputError(f"{name} must lie between -2 and 2", param=name)
    if len(sampling.stop) > MAX_STOP_STRINGS or not all(sampling.stop):
        raise InputError(f"stop takes up to {MAX_STOP_STRINGS} strings, none of them empty", param="stop")


def answer_limit(request: GenerationRequest, max_model_len: int) -> int:
    """Give how many tokens the answer may have: what was asked for, cut to what the context leaves."""
    room = max_model_len - len(request.input_ids)
    return room if request.sampling.max_tokens is None else min(room, request.sampling.max_tokens)
