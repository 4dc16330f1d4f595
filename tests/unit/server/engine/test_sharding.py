"""A tensor-parallel size that does not divide the base is told in one sentence, before vLLM starts."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from adapter_store.errors import BaseModelError
from server.engine.vllm_client.sharding import check_sharding, usable_sizes

EMBEDDED = LlamaConfig(
    num_attention_heads=9, num_key_value_heads=3, hidden_size=576, intermediate_size=1536, vocab_size=49_152
)
LLAVA_7B = LlamaConfig(num_attention_heads=32, hidden_size=4096, intermediate_size=11_008, vocab_size=32_064)


def test_sizes_divide_heads_widths_and_vocabulary() -> None:
    assert usable_sizes(EMBEDDED) == (1, 3)
    assert usable_sizes(LLAVA_7B) == (1, 2, 4, 8, 16, 32)


@pytest.mark.parametrize("size", [2, 4, 9])
def test_another_size_names_the_setting_the_heads_and_those_that_work(size: int) -> None:
    with pytest.raises(BaseModelError) as refused:
        check_sharding(EMBEDDED, size)
    text = refused.value.message
    assert f"STRATA_TENSOR_PARALLEL_SIZE={size} does not divide" in text
    assert "9 attention heads, 3 of keys and values" in text
    assert text.endswith("one of 1, 3")
    check_sharding(EMBEDDED, 3)
