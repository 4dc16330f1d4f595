"""Run the frozen language model over tails behind cached picture prefixes.

With span "after_image" no increment acts on the chat head and the picture, so their keys and values are
constants of the base: computed once per picture, without gradients, and shared by every question, epoch and
version. A training step then runs question and answer tokens only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer_worker.samples import Batch, Prefix


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """The parts of a LLaVA that turn embeddings into logits: ``backbone`` (Llama-shaped) and ``head``."""

    backbone: nn.Module
    embedding: nn.Module
    head: nn.Module
    image_token_id: int

    @classmethod
    def of(cls, model: Any, image_token_id: int) -> LanguageModel:
        """Take the parts out of a ``LlavaForConditionalGeneration``."""
        backbone = model.model.language_model
        return cls(backbone, backbone.get_input_embeddings(), model.get_output_embeddings(), image_token_id)

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

    def hidden(self, batch: Batch, keys_values: Tensor | None, pictures: Tensor | None = None) -> Tensor:
        """Return the normed hidden states ``[n, hidden]`` at the batch's picked tokens.

        ``keys_values`` ``[L, 2, B, heads, P, head_dim]`` are the cached prefixes of the rows, or None.
        """
        device = self.device
        embeds = self.embed(batch.ids.to(device), pictures)
        cache = None if keys_values is None else PrefixCache(keys_values)
        out = self.backbone(
            inputs_embeds=embeds,
            attention_mask=batch.mask.to(device),
            position_ids=batch.positions.to(device),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state.flatten(0, 1)[batch.pick.to(device)]

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

    def __init__(self, keys_values: Tensor) -> None:
        self._keys_values = keys_values

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return prefix and own keys and values of one layer, joined along the tokens."""
        prefix = self._keys_values[layer_idx]
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
    """

    def __init__(
        self,
        language: LanguageModel,
        prefixes: Sequence[Prefix],
        pictures: Tensor | None,
        *,
        budget_bytes: int,
        half: bool = True,
    ) -> None:
        self._language = language
        self.prefixes = prefixes
        self._pictures = pictures
        self._budget = budget_bytes
        self._half = half
        self._kept: dict[int, Tensor] = {}
        self.kept_bytes = 0
        self.computed = 0

    def lengths(self) -> list[int]:
        """Return the number of tokens of every prefix."""
        return [len(prefix.ids) for prefix in self.prefixes]

    def warm(
        self, indices: Sequence[int], *, batch: int = 16, check: Callable[[], None] = lambda: None
    ) -> int:
        """Compute and keep prefixes while the budget lasts; return how many are kept.

        ``check`` is called between batches and may raise to interrupt.
        """
        by_length: dict[int, list[int]] = {}
        for index in dict.fromkeys(indices):
            if index not in self._kept and self.prefixes[index].ids:
                by_length.setdefault(len(self.prefixes[index].ids), []).append(index)
        for group in by_length.values():
            for start in range(0, len(group), batch):
                if self.kept_bytes >= self._budget:
                    return len(self._kept)
                check()
                part = group[start : start + batch]
                self._keep(part, self._compute(part))
        return len(self._kept)

    def get(self, indices: Sequence[int]) -> Tensor | None:
        """Return ``[L, 2, B, heads, P, head_dim]`` for prefixes of equal length; None if that length is 0."""
        if not self.prefixes[indices[0]].ids:
            return None
        missing = [index for index in dict.fromkeys(indices) if index not in self._kept]
        fresh: dict[int, Tensor] = {}
        if missing:
            computed = self._compute(missing)
            fresh = {index: computed[:, :, n] for n, index in enumerate(missing)}
        parts = [fresh[index] if index in fresh else self._kept[index] for index in indices]
        return torch.stack([part.to(self._language.dtype) for part in parts], dim=2)

    def pictures_of(self, indices: Sequence[int]) -> Tensor | None:
        """Return the pictures ``[n, tokens, hidden]`` of those prefixes that have one, in order."""
        wanted = [self.prefixes[index].image for index in indices if self.prefixes[index].image is not None]
        return None if not wanted or self._pictures is None else self._pictures[torch.tensor(wanted)]

    def _compute(self, indices: Sequence[int]) -> Tensor:
        self.computed += len(indices)
        return self._language.prefix_keys_values(
            [self.prefixes[i] for i in indices], self.pictures_of(indices)
        )

    def _keep(self, indices: Sequence[int], computed: Tensor) -> None:
        for n, index in enumerate(indices):
            kept = computed[:, :, n]
            kept = kept.to(torch.float16 if self._half and kept.dtype == torch.float32 else kept.dtype)
            size = kept.numel() * kept.element_size()
            if self.kept_bytes + size > self._budget:
                return
            self._kept[index] = kept.contiguous()
            self.kept_bytes += size


def _causal(rows: int, width: int, device: torch.device) -> Tensor:
    return (
        torch.ones(width, width, dtype=torch.bool, device=device).tril()[None, None].expand(rows, 1, -1, -1)
    )
