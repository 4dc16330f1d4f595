"""Run the frozen language model over tails behind cached picture prefixes.

With span "after_image" no increment acts on the chat head and the picture, so their keys and values are
constants of the base: computed once per picture, without gradients, and shared by every question, epoch and
version. So is what enters the first adapted layer. A training step then runs question and answer tokens
through the adapted layers only.
"""

from __future__ import annotations

import copy
import threading
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


class PrefixStore:
    """Keep prefix keys and values under a memory budget, the first ones that fit, in half precision if asked.

    Training walks over all pictures again and again; for such a walk a fixed set beats least-recently-used
    replacement, which would evict every entry before its next use. What does not fit is computed anew.
    Several threads may use a store, each with a language model of its own.
    """

    def __init__(
        self, prefixes: Sequence[Prefix], pictures: Tensor | None, *, budget_bytes: int, half: bool = True
    ) -> None:
        self.prefixes = prefixes
        self._pictures = pictures
        self._budget = budget_bytes
        self._half = half
        self._kept: dict[int, Tensor] = {}
        self._below: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._writing = threading.Lock()
        self.kept_bytes = 0

    def lengths(self) -> list[int]:
        """Return the number of tokens of every prefix."""
        return [len(prefix.ids) for prefix in self.prefixes]

    def missing(self, indices: Sequence[int], *, batch: int = 16) -> list[list[int]]:
        """Return the prefixes that are not kept, in batches of one length for ``keep``."""
        by_length: dict[int, list[int]] = {}
        for index in dict.fromkeys(indices):
            if index not in self._kept and self.prefixes[index].ids:
                by_length.setdefault(len(self.prefixes[index].ids), []).append(index)
        return [group[i : i + batch] for group in by_length.values() for i in range(0, len(group), batch)]

    def keep(self, language: LanguageModel, indices: Sequence[int]) -> None:
        """Compute and keep prefixes of one length while the budget lasts."""
        if self.kept_bytes < self._budget:
            self._keep(indices, self._compute(language, indices))

    def enter(self, language: LanguageModel, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Return ``keys_values`` and ``entering`` for ``language.hidden``.

        What a question's tokens are when they enter the first adapted layer is computed once and kept.
        """
        first = language.first_layer
        if not batch.cached:
            return None, None
        if not first:
            return self.get(language, batch.prefixes), None
        names = [(batch.prefixes[row], tuple(batch.ids[row, a:b].tolist())) for row, a, b in batch.pieces]
        if all(name in self._below for name in names):
            entering = torch.zeros(*batch.ids.shape, self._below[names[0]].shape[-1])
            for name, (row, a, b) in zip(names, batch.pieces, strict=True):
                entering[row, a:b] = self._below[name]
            return self.get(language, batch.prefixes, first), entering.to(language.device, language.dtype)
        whole = self.get(language, batch.prefixes)
        entering = language.below(batch, whole)
        for name, (row, a, b) in zip(names, batch.pieces, strict=True):
            self._keep_below(name, entering[row, a:b])
        return (None if whole is None else whole[first:]), entering

    def get(self, language: LanguageModel, indices: Sequence[int], first_layer: int = 0) -> Tensor | None:
        """Return ``[L, 2, B, heads, P, head_dim]`` of the layers from ``first_layer`` on.

        The prefixes have equal length; None if that length is 0.
        """
        if not self.prefixes[indices[0]].ids:
            return None
        missing = [index for index in dict.fromkeys(indices) if index not in self._kept]
        fresh: dict[int, Tensor] = {}
        if missing:
            computed = self._compute(language, missing)
            fresh = {index: computed[:, :, n] for n, index in enumerate(missing)}
        parts = [fresh[index] if index in fresh else self._kept[index] for index in indices]
        return torch.stack([part[first_layer:].to(language.dtype) for part in parts], dim=2)

    def pictures_of(self, indices: Sequence[int]) -> Tensor | None:
        """Return the pictures ``[n, tokens, hidden]`` of those prefixes that have one, in order."""
        wanted = [self.prefixes[index].image for index in indices if self.prefixes[index].image is not None]
        return None if not wanted or self._pictures is None else self._pictures[torch.tensor(wanted)]

    def _compute(self, language: LanguageModel, indices: Sequence[int]) -> Tensor:
        return language.prefix_keys_values([self.prefixes[i] for i in indices], self.pictures_of(indices))

    def _keep(self, indices: Sequence[int], computed: Tensor) -> None:
        for n, index in enumerate(indices):
            kept = computed[:, :, n]
            kept = kept.to(torch.float16 if self._half and kept.dtype == torch.float32 else kept.dtype)
            size = kept.numel() * kept.element_size()
            with self._writing:
                if index in self._kept or self.kept_bytes + size > self._budget:
                    continue
                self._kept[index] = kept.contiguous()
                self.kept_bytes += size

    def _keep_below(self, name: tuple[int, tuple[int, ...]], activations: Tensor) -> None:
        size = activations.numel() * activations.element_size()
        with self._writing:
            if name not in self._below and self.kept_bytes + size <= self._budget:
                self._below[name] = activations.to("cpu", copy=True)
                self.kept_bytes += size


def _with(module: nn.Module, **parts: nn.Module) -> nn.Module:
    """Return a copy of a module that shares all weights and has some parts replaced."""
    other = copy.copy(module)
    other._modules = {**module._modules, **parts}
    return other


def _causal(rows: int, width: int, device: torch.device) -> Tensor:
    return (
        torch.ones(width, width, dtype=torch.bool, device=device).tril()[None, None].expand(rows, 1, -1, -1)
    )
