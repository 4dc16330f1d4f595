"""The frozen eye: each picture goes once through tower and projector, then is remembered by its pixels."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adapter_store.errors import BaseModelError
from adapter_store.images import image_digest

if TYPE_CHECKING:
    from PIL import Image

    from adapter_store.base.load import Base

DEFAULT_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatures:
    """Hold what the model and the router know of one picture.

    Attributes:
        digest: sha256 over mode, size and pixels.
        pooled: ``[dv]`` float32, mean over the tower's tokens, before the projector (for eq. 1).
        embeds: ``[n_tokens, hidden]`` in the model's dtype, what replaces the image placeholders.
    """

    digest: str
    pooled: Tensor
    embeds: Tensor

    @property
    def nbytes(self) -> int:
        """Return the size of both tensors in bytes."""
        return self.pooled.nbytes + self.embeds.nbytes


class VisionEncoder:
    """Encode pictures in batches as LLaVA does; safe to call from several threads.

    Args:
        base: the loaded base.
        cache_bytes: how much to remember; the least recently used picture goes first.
        batch_size: pictures of one pass.
        at_once: passes that may run at the same time; with more than one, threads that ask for the same
            picture at the same moment may each encode it.
    """

    def __init__(
        self,
        base: Base,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        batch_size: int = 32,
        at_once: int = 1,
    ) -> None:
        self._model: Any = base.model
        self._image_processor: Any = base.processor.image_processor
        self._cache_bytes = cache_bytes
        self._batch_size = batch_size
        self._cache: OrderedDict[str, ImageFeatures] = OrderedDict()
        self._held_bytes = 0
        self._cache_lock = threading.Lock()
        self._running = threading.Semaphore(at_once)

    @property
    def token_bytes(self) -> int:
        """Return the size of one projected token."""
        return int(self._model.config.text_config.hidden_size) * self._model.dtype.itemsize

    def encode(self, images: Sequence[Image.Image]) -> list[ImageFeatures]:
        """Return the features of pictures, in order; equal pictures are encoded once."""
        digests = [image_digest(image) for image in images]
        found = self._recall(digests)
        missing = {
            digest: image for digest, image in zip(digests, images, strict=True) if digest not in found
        }
        if missing:
            with self._running:
                found |= self._recall(list(missing))
                fresh = self._run({key: image for key, image in missing.items() if key not in found})
                self._remember(fresh)
            found |= fresh
        return [found[digest] for digest in digests]

    def _recall(self, digests: Sequence[str]) -> dict[str, ImageFeatures]:
        with self._cache_lock:
            found = {digest: self._cache[digest] for digest in digests if digest in self._cache}
            for digest in found:
                self._cache.move_to_end(digest)
        return found

    def _remember(self, fresh: dict[str, ImageFeatures]) -> None:
        with self._cache_lock:
            for digest, features in fresh.items():
                if digest not in self._cache:
                    self._cache[digest] = features
                    self._held_bytes += features.nbytes
            while self._held_bytes > self._cache_bytes:
                self._held_bytes -= self._cache.popitem(last=False)[1].nbytes

    def _run(self, images: dict[str, Image.Image]) -> dict[str, ImageFeatures]:
        items = list(images.items())
        features: dict[str, ImageFeatures] = {}
        for start in range(0, len(items), self._batch_size):
            batch = items[start : start + self._batch_size]
            pooled, embeds = self._forward([image for _, image in batch])
            for row, (digest, _) in enumerate(batch):
                # Cloned outside inference mode: own storage, and allowed in a training graph.
                features[digest] = ImageFeatures(digest, pooled[row].clone(), embeds[row].clone())
        return features

    @torch.inference_mode()
    def _forward(self, images: list[Image.Image]) -> tuple[Tensor, list[Tensor]]:
        """Return pooled features ``[B, dv]`` and each picture's projected tokens ``[n_tokens, hidden]``."""
        pixels = self._image_processor(images=images, return_tensors="pt")["pixel_values"]
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or len(pixels) != len(images):
            raise BaseModelError(
                "this base cuts a picture into several tiles: only one tile per picture is supported"
            )
        pixels = pixels.to(self._model.device, self._model.dtype)
        outputs = self._model.get_image_features(pixel_values=pixels, return_dict=True)
        return self._pooled(outputs.hidden_states), list(outputs.pooler_output)

    def _pooled(self, hidden_states: Sequence[Tensor]) -> Tensor:
        """Return the mean ``[B, dv]`` over the tokens that the projector reads (of its last layer)."""
        config = self._model.config
        layer = config.vision_feature_layer
        hidden = hidden_states[layer if isinstance(layer, int) else layer[-1]]
        if config.vision_feature_select_strategy == "default":
            hidden = hidden[:, 1:]
        return hidden.float().mean(dim=1)
