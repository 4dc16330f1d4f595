"""The frozen sentence encoder: a mean-pooled transformer whose unit vectors compare questions."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter_store.base.pretrained import load_pretrained
from adapter_store.errors import BaseModelError

_MAX_TOKENS = 256
_MAX_CHARACTERS = 8192


class SentenceEncoder:
    """Encode texts as unit vectors and remember the recent ones; safe to call from several threads.

    Args:
        folder: model and tokenizer as transformers saves them.
        device: where the model runs.
        cache_size: texts to remember.
        batch_size: texts encoded at once.

    Raises:
        BaseModelError: the folder holds no encoder.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        *,
        cache_size: int = 16384,
        batch_size: int = 64,
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = load_pretrained(AutoModel, folder, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise BaseModelError(f"no sentence encoder can be loaded from {folder}: {error}") from error
        self._model: Any = model.eval().requires_grad_(requires_grad=False).to(device)
        self._device = device
        self.width = int(model.config.hidden_size)
        positions = getattr(model.config, "max_position_embeddings", _MAX_TOKENS)
        self._max_tokens = int(min(_MAX_TOKENS, positions, self._tokenizer.model_max_length))
        self._batch_size = batch_size
        self._cache_size = cache_size
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cache_lock = threading.Lock()
        self._model_lock = threading.Lock()

    def encode(self, texts: list[str]) -> Tensor:
        """Return the unit vectors of texts.

        Long texts are cut at the encoder's context. Each distinct text that is not remembered is run once.

        Returns:
            ``[B, width]`` float32 on the CPU.
        """
        if not texts:
            return torch.zeros(0, self.width)
        keys = [text[:_MAX_CHARACTERS] for text in texts]
        found = self._recall(keys)
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            with self._model_lock:
                found |= self._recall(missing)
                fresh = self._run([key for key in missing if key not in found])
                self._remember(fresh)
            found |= fresh
        return torch.stack([found[key] for key in keys])

    def _recall(self, keys: list[str]) -> dict[str, Tensor]:
        with self._cache_lock:
            found = {key: self._cache[key] for key in keys if key in self._cache}
            for key in found:
                self._cache.move_to_end(key)
        return found

    def _remember(self, fresh: dict[str, Tensor]) -> None:
        with self._cache_lock:
            self._cache.update(fresh)
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)

    def _run(self, texts: list[str]) -> dict[str, Tensor]:
        """Encode distinct texts, shortest first so that batches hold little padding."""
        ordered = sorted(texts, key=len)
        vectors: dict[str, Tensor] = {}
        for start in range(0, len(ordered), self._batch_size):
            batch = ordered[start : start + self._batch_size]
            # Cloned outside inference mode: inference tensors may not enter a training graph.
            vectors.update(zip(batch, self._forward(batch).clone(), strict=True))
        return vectors

    @torch.inference_mode()
    def _forward(self, texts: list[str]) -> Tensor:
        inputs = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._device)
        hidden = self._model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1.0)
        return F.normalize(mean, dim=-1).cpu()
