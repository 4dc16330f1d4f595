"""Run the frozen language model over tails behind cached picture prefixes.

With span "after_image" no increment acts on the chat head and the picture, so their keys and values are
constants of the base: computed once per picture, without gradients, and shared by every question, epoch and
version. So is what enters the first adapted layer. A training step then runs question and answer tokens
through the adapted layers only.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer_worker.samples import Batch, Prefix


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """The parts of a LLaVA that turn embeddings into logits: ``backbone`` (Llama-shaped) and ``head``.

    ``lower`` and ``upper`` are the backbone below and from layer ``first_layer`` on, with its own weights.
    """

    backbone: nn.Module
    embedding: nn.Module
    head: nn.Module
    image_token_id: int
    first_layer: int
    lower: nn.Module
    upper: nn.Module

    @classmethod
    def of(cls, model: Any, image_token_id: int, first_layer: int = 0) -> LanguageModel:
        """Take the parts out of a LLaVA whose increments act from layer ``first_layer`` on."""
        backbone = model.model.language_model
        layers = list(backbone.layers)
        return cls(
            backbone,
            backbone.get_input_embeddings(),
            model.get_output_embeddings(),
            image_token_id,
            first_layer,
            lower=_with(backbone, layers=nn.ModuleList(layers[:first_layer]), norm=nn.Identity()),
            upper=_with(backbone, layers=nn.ModuleList(layers[first_layer:])),
        )

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return next(self.backbone.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Return the weights' dtype."""
        return next(self.backbone.parameters()).dtype

    def embed(self, ids: Tensor, pictures: Tensor | None) -> Tensor:
        """Embed ids ``[B, T]``; ``pictures`` ``[n, tokens, hidden]`` take the image tokens' places."""
        with torch.no_grad():
            embeds = self.embedding(ids)
            if pictures is not None:
                embeds = embeds.masked_scatter((ids == self.image_token_id)[..., None], pictures.to(embeds))
        return embeds

    def hidden(
        self, batch: Batch, keys_values: Tensor | None, entering: Tensor | None, pictures: Tensor | None
    ) -> Tensor:
        """Return the normed hidden states ``[n, hidden]`` at the batch's picked tokens.

        Args:
            batch: the rows.
            keys_values: cached prefixes of the rows, ``[L, 2, B, heads, P, head_dim]`` of all layers, or of
                those from ``first_layer`` on if ``entering`` is given; None without a prefix.
            entering: ``[B, T, hidden]``, what enters layer ``first_layer``; None runs all layers.
            pictures: what stands inside the rows, if the prefix is not cached.
        """
        if entering is None:
            embeds = self.embed(batch.ids.to(self.device), pictures)
            out = self._run(self.backbone, embeds, batch, keys_values, 0)
        else:
            out = self._run(self.upper, entering, batch, keys_values, self.first_layer)
        return out.flatten(0, 1)[batch.pick.to(self.device)]

    @torch.no_grad()
    def below(self, batch: Batch, keys_values: Tensor | None) -> Tensor:
        """Return what enters layer ``first_layer``, ``[B, T, hidden]``; keys and values are of all layers."""
        return self._run(self.lower, self.embed(batch.ids.to(self.device), None), batch, keys_values, 0)

    def _run(
        self, part: nn.Module, embeds: Tensor, batch: Batch, keys_values: Tensor | None, first: int
    ) -> Tensor:
        cache = None if keys_values is None else PrefixCache(keys_values, first)
        return part(
            inputs_embeds=embeds,
            attention_mask=batch.mask.to(self.device),
            position_ids=batch.positions.to(self.device),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    @torch.no_grad()
    def prefix_keys_values(self, prefixes: Sequence[Prefix], pictures: Tensor | None) -> Tensor:
        """Compute keys and values ``[L, 2, B, heads, P, head_dim]`` of prefixes of one length ``P``."""
        device = self.device
        ids = torch.tensor([prefix.ids for prefix in prefixes], device=device)
        cache = _Recorder(len(self.backbone.layers))  # type: ignore[arg-type]
        self.backbone(
            inputs_embeds=self.embed(ids, pictures),
            attention_mask=_causal(len(prefixes), ids.shape[1], device),
            position_ids=torch.arange(ids.shape[1], device=device)[None],
            past_key_values=cache,
            use_cache=True,
        )
        return torch.stack([torch.stack(pair) for pair in cache.pairs])


class PrefixCache:
    """Hand attention layers the cached prefix in front of the step's own keys and values."""

    is_compileable = False

    def __init__(self, keys_values: Tensor, first_layer: int = 0) -> None:
        self._keys_values = keys_values
        self._first_layer = first_layer

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return prefix and own keys and values of one layer, joined along the tokens."""
        prefix = self._keys_values[layer_idx - self._first_layer]
        return torch.cat([prefix[0].to(keys), keys], dim=2), torch.cat([prefix[1].to(values), values], dim=2)

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        """Return the prefix's length."""
        return self._keys_values.shape[4]


class _Recorder:
    """Keep what each layer computes, for the first and only pass over a prefix."""

    is_compileable = False

    def __init__(self, layers: int) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self._layers = layers

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        assert layer_idx == len(self.pairs) < self._layers
        self.pairs.append((keys, values))
        return keys, values

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        return 0


def _with(module: nn.Module, **parts: nn.Module) -> nn.Module:
    """Return a copy of a module that shares all weights and has some parts replaced."""
    other = copy.copy(module)
    other._modules = {**module._modules, **parts}
    return other


def _causal(rows: int, width: int, device: torch.device) -> Tensor:
    return (
        torch.ones(width, width, dtype=torch.bool, device=device).tril()[None, None].expand(rows, 1, -1, -1)
    )
