"""Keep what a batch brings to the first adapted layer, so that training computes it once per question."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from trainer_worker.language import LanguageModel
from trainer_worker.samples import Batch, Prefix

_Name = tuple[int, tuple[int, ...]]
"""A question: its prefix and its token ids."""
_KeyT = TypeVar("_KeyT")


class PrefixStore:
    """Keep prefixes and questions as they enter the adapted layers, the first ones that fit a memory budget.

    Of a prefix these are the keys and values of the adapted layers, of a question its hidden states. Training
    walks over all of them again and again; for such a walk a fixed set beats least-recently-used replacement,
    which would evict every entry before its next use. What does not fit is computed anew. Several threads may
    use a store, each with a language model of its own.
    """

    def __init__(
        self, prefixes: Sequence[Prefix], pictures: Tensor | None, *, budget_bytes: int, half: bool = True
    ) -> None:
        """Keep nothing yet; ``half`` keeps keys and values in half precision."""
        self.prefixes = prefixes
        self._pictures = pictures
        self._budget = budget_bytes
        self._half = half
        self._prefixes: dict[int, Tensor] = {}
        self._questions: dict[_Name, Tensor] = {}
        self._writing = threading.Lock()
        self.kept_bytes = 0

    @property
    def kept(self) -> int:
        """Return how many prefixes are kept."""
        return len(self._prefixes)

    def lengths(self) -> list[int]:
        """Return the number of tokens of every prefix."""
        return [len(prefix.ids) for prefix in self.prefixes]

    def enter(self, language: LanguageModel, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Return ``keys_values`` and ``entering`` for ``language.hidden``, and keep what fits."""
        if not batch.cached:
            return None, None
        names = _names(batch) if language.first_layer else []
        kept = self._kept(language, batch, names)
        if kept is not None:
            return kept
        keys_values = self._computed(language, batch.prefixes)
        entering = language.below(batch, keys_values) if language.first_layer else None
        upper = keys_values[language.first_layer :]
        for number, index in enumerate(batch.prefixes):
            self._keep(self._prefixes, index, self._rounded(upper[:, :, number]))
        if entering is not None:
            for name, (row, a, b) in zip(names, batch.pieces, strict=True):
                self._keep(self._questions, name, entering[row, a:b])
        return upper, entering

    def pictures_of(self, indices: Sequence[int]) -> Tensor | None:
        """Return the pictures ``[n, tokens, hidden]`` of those prefixes that have one, in order."""
        wanted = [self.prefixes[index].image for index in indices if self.prefixes[index].image is not None]
        return None if not wanted or self._pictures is None else self._pictures[torch.tensor(wanted)]

    def _kept(
        self, language: LanguageModel, batch: Batch, names: Sequence[_Name]
    ) -> tuple[Tensor, Tensor | None] | None:
        """Return a batch all of which is kept, else None."""
        if not all(index in self._prefixes for index in batch.prefixes):
            return None
        if not all(name in self._questions for name in names):
            return None
        parts = [self._prefixes[index].to(language.dtype) for index in batch.prefixes]
        keys_values = torch.stack(parts, dim=2).to(language.device)
        if not names:
            return keys_values, None
        first = self._questions[names[0]]
        entering = torch.zeros(*batch.ids.shape, first.shape[-1], dtype=language.dtype, device=first.device)
        for name, (row, a, b) in zip(names, batch.pieces, strict=True):
            entering[row, a:b] = self._questions[name]
        return keys_values, entering.to(language.device)

    def _computed(self, language: LanguageModel, indices: Sequence[int]) -> Tensor:
        """Return ``[L, 2, B, heads, P, head_dim]`` of all layers for prefixes of one length."""
        distinct = list(dict.fromkeys(indices))
        prefixes = [self.prefixes[index] for index in distinct]
        computed = language.prefix_keys_values(prefixes, self.pictures_of(distinct))
        if len(distinct) == len(indices):
            return computed
        return computed[:, :, torch.tensor([distinct.index(index) for index in indices])]

    def _rounded(self, keys_values: Tensor) -> Tensor:
        lower = self._half and keys_values.dtype == torch.float32
        return keys_values.to(torch.float16) if lower else keys_values

    def _keep(self, kept: dict[_KeyT, Tensor], key: _KeyT, value: Tensor) -> None:
        size = value.numel() * value.element_size()
        with self._writing:
            if key not in kept and self.kept_bytes + size <= self._budget:
                kept[key] = value.clone(memory_format=torch.contiguous_format)
                self.kept_bytes += size


def _names(batch: Batch) -> list[_Name]:
    return [(batch.prefixes[row], tuple(batch.ids[row, a:b].tolist())) for row, a, b in batch.pieces]
