"""Say over how many devices a language model can be divided, before vLLM is asked to."""

from __future__ import annotations

from typing import Any

from adapter_store.errors import BaseModelError

_LARGEST = 64
_VOCABULARY_GRAIN = 64
"""vLLM rounds the vocabulary up to a multiple of this before it divides it."""


def usable_sizes(text_config: Any) -> tuple[int, ...]:
    """Return the tensor-parallel sizes, up to 64, that divide a language model's heads and linears.

    Args:
        text_config: the language model's configuration, as transformers has it.
    """
    heads = int(text_config.num_attention_heads)
    kv_heads = int(getattr(text_config, "num_key_value_heads", None) or heads)
    vocabulary = -(-int(text_config.vocab_size) // _VOCABULARY_GRAIN) * _VOCABULARY_GRAIN
    whole = (heads, int(text_config.hidden_size), int(text_config.intermediate_size), vocabulary)
    return tuple(
        size
        for size in range(1, _LARGEST + 1)
        if not any(number % size for number in whole) and (kv_heads % size == 0 or size % kv_heads == 0)
    )


def check_sharding(text_config: Any, size: int) -> None:
    """Raise BaseModelError, which names the sizes that work, if ``size`` devices cannot share the model."""
    usable = usable_sizes(text_config)
    if size in usable:
        return
    heads = int(text_config.num_attention_heads)
    kv_heads = int(getattr(text_config, "num_key_value_heads", None) or heads)
    raise BaseModelError(
        f"STRATA_TENSOR_PARALLEL_SIZE={size} does not divide this base ({heads} attention heads, {kv_heads} "
        f"of keys and values, {text_config.intermediate_size} wide inside): set --tensor-parallel-size to "
        f"one of {', '.join(map(str, usable))}"
    )
