"""Attend with grouped key-value heads without repeating them.

The library's own path copies keys and values once per query head of a group whenever a mask is given. Here
the heads of a group become extra query rows over the shared keys: the same sums, no copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "strata_grouped"


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, with ``query`` ``[B, H, T, D]`` over keys and values ``[B, K, L, D]``, H a multiple of K.

    The additive mask is ``[B, 1, T, L]``, or ``[B, 1, H/K*T, L]`` with the rows repeated for each head of a
    group; without one the library's causal path is taken. The output is ``[B, T, H, D]`` and None, as the
    library expects.
    """
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None or dropout:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    rows = groups * length
    if length > 1 and attention_mask.shape[2] != rows:
        attention_mask = attention_mask.repeat(1, 1, groups, 1)
    query = query.reshape(batch, key.shape[1], rows, width)
    if query.stride(-1) != 1:  # the fused kernel wants it so
        query = query.contiguous()
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, heads, length, width).transpose(1, 2).contiguous(), None


def use_grouped_attention(language_model: nn.Module) -> int:
    """Make ``language_model`` attend through ``grouped_attention``; return query heads per key-value head."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, grouped_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    config: Any = language_model.config
    config._attn_implementation = NAME
    return config.num_attention_heads // config.num_key_value_heads
