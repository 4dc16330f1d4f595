"""Turn pictures into what LLaVA reads, and give its projector a first sense of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from adapter_store.base.assemble import VISION_LAYERS
from trainer_worker.pretrain.packing import Batch
from trainer_worker.pretrain.picture import GRID, SIDE

_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


def to_pixels(image: Image.Image) -> Tensor:
    """Resize and normalize a picture as the base's image processor does; returns `[3, 84, 84]`."""
    resized = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    array = (np.asarray(resized, dtype=np.float32) / 255.0 - _MEAN) / _STD
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


@torch.no_grad()
def tower_features(tower: Any, pixels: Tensor) -> Tensor:
    """Return what LLaVA reads from the tower, layers side by side: `[pictures, patches, layers * hidden]`."""
    states = tower(pixels, output_hidden_states=True).hidden_states
    return torch.cat([states[layer] for layer in VISION_LAYERS], -1)


class Projector(nn.Module):
    """LLaVA's two-layer projector, started so that no feature dimension dominates.

    The output's scale is a constant of its own: an optimizer that moves every weight by the same amount per
    step would otherwise wipe out small weights at once.

    Args:
        mean: `[vision]` mean of the tower's features.
        std: `[vision]` their standard deviation.
        width: Hidden size of the language model.
    """

    mean: Tensor
    std: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, std: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("scale", torch.tensor(0.15))
        self.linear_1 = nn.Linear(mean.shape[0], width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Map `[..., vision]` to `[..., width]`."""
        return self.scale * self.linear_2(F.gelu(self.linear_1((features - self.mean) / self.std)))

    def plain_state(self) -> dict[str, Tensor]:
        """Return the parameters of LLaVA's own projector, standardization and scale folded in."""
        mean, std, scale = self.get_buffer("mean"), self.get_buffer("std"), self.get_buffer("scale")
        weight = self.linear_1.weight.detach() / std
        bias = self.linear_1.bias.detach() - weight @ mean
        second = self.linear_2
        return {
            "linear_1.weight": weight.contiguous(),
            "linear_1.bias": bias,
            "linear_2.weight": second.weight.detach() * scale,
            "linear_2.bias": second.bias.detach() * scale,
        }


class WordTargets:
    """Know the embedding of every word that describes a patch.

    Args:
        vocabulary: All words.
        tokenizer: The base's tokenizer; only each word's first token is used.
        embedding: `[vocabulary, hidden]` token embeddings.
    """

    def __init__(self, vocabulary: Sequence[str], tokenizer: Any, embedding: Tensor) -> None:
        self._index = {word: number for number, word in enumerate(vocabulary)}
        ids = [tokenizer.encode(word, add_special_tokens=False)[0] for word in vocabulary]
        self._rows = embedding[ids]
        self._directions = F.normalize(self._rows - embedding.mean(0), dim=-1)

    def targets(self, patches: Sequence[tuple[str, ...]]) -> Tensor:
        """Return `[patches, words]`, rows summing to one; all zero for a picture without known patches."""
        result = torch.zeros(GRID * GRID, len(self._index))
        for number, words in enumerate(patches):
            for word in words:
                result[number, self._index[word]] += 1.0 / len(words)
        return result

    def loss(self, projected: Tensor, targets: Tensor) -> Tensor:
        """Return how far each patch is from the mean embedding of its words, by direction, choice and length.

        Patches that show an object (two words) count eight times as much as background.

        Args:
            projected: `[patches, hidden]`.
            targets: `[patches, words]`.
        """
        logits = 18.0 * F.normalize(projected, dim=-1) @ self._directions.t()
        choice = -(targets * F.log_softmax(logits, -1)).sum(-1)
        wanted = targets @ self._rows
        turn = 1.0 - F.cosine_similarity(projected, wanted, dim=-1)
        stretch = (projected.norm(dim=-1) - wanted.norm(dim=-1)).square()
        weights = torch.where((targets > 0).sum(-1) > 1, 4.0, 0.5) * (targets.sum(-1) > 0)
        return ((choice + 2.0 * turn + 0.05 * stretch) * weights).sum() / weights.sum().clamp(min=1.0)


def embed(batch: Batch, embedding: Tensor, projected: Tensor | None) -> Tensor:
    """Return input embeddings with the projected pictures in place: `[rows, length, hidden]`.

    Args:
        batch: What to embed.
        embedding: `[vocabulary, hidden]` token embeddings.
        projected: `[pictures, patches, hidden]`, or None for a batch without pictures.
    """
    embedded = F.embedding(batch.ids, embedding)
    if projected is None:
        return embedded
    rows = embedded[batch.picture_rows]
    start, stop = batch.picture_start, batch.picture_start + projected.shape[1]
    filled = torch.cat([rows[:, :start], projected, rows[:, stop:]], 1)
    return embedded.index_copy(0, batch.picture_rows, filled)


def project(batch: Batch, tower: Any, projector: nn.Module) -> Tensor | None:
    """Return the projected pictures of a batch: `[pictures, patches, hidden]`, or None if it has none."""
    return projector(tower_features(tower, batch.pixels)) if len(batch.pixels) else None
