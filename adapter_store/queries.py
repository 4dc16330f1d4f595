"""What a request is compared by: the sentence of its question and, if wished, its picture (eq. 1)."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter_store.calibration import ImageCalibration
from adapter_store.errors import StateInvalid
from adapter_store.state import RoutingSettings

if TYPE_CHECKING:
    from adapter_store.encoder import SentenceEncoder

_PROJECTION_SEED = b"strata image query projection 1"


def query_width(routing: RoutingSettings, text_width: int) -> int:
    """Return q: the sentence encoder's width, doubled when pictures take part."""
    return text_width if routing.mode == "text" else 2 * text_width


def encode_queries(
    text: Tensor,
    image: Tensor | Sequence[Tensor | None] | None,
    routing: RoutingSettings,
    calibration: ImageCalibration | None,
) -> Tensor:
    """Return the queries s of requests (eq. 1).

    With ``mode="text+image"`` the halves are scaled by the square roots of their weights, so that the cosine
    of two queries with pictures is the weighted mean of the halves' cosines. A request without a picture has
    a zero second half.

    Args:
        text: ``[B, w]`` sentence embeddings.
        image: pooled tower features ``[B, dv]``, or a ``[dv]`` or None per request, or None.
        routing: mode and weights.
        calibration: centers and whitens pooled features first, or None.

    Returns:
        ``[B, q]`` float32, unit rows.
    """
    text = F.normalize(text.float(), dim=-1)
    if routing.mode == "text":
        return text
    total = routing.text_weight + routing.image_weight
    pictures = _picture_halves(image, text, calibration)
    halves = [
        math.sqrt(routing.text_weight / total) * text,
        math.sqrt(routing.image_weight / total) * pictures,
    ]
    return F.normalize(torch.cat(halves, dim=-1), dim=-1)


def project_pooled(pooled: Tensor, width: int, calibration: ImageCalibration | None) -> Tensor:
    """Center and whiten, bring to ``width`` and normalize pooled picture features.

    Args:
        pooled: ``[B, dv]``.
        width: width of the result; another ``dv`` is projected by a fixed matrix of random signs.
        calibration: of the base, or None.

    Returns:
        ``[B, width]`` float32, unit rows.
    """
    pooled = pooled.float()
    if calibration is not None:
        pooled = calibration.apply(pooled)
    if pooled.shape[-1] != width:
        pooled = pooled @ _projection(pooled.shape[-1], width).to(pooled.device)
    return F.normalize(pooled, dim=-1)


class QueryEncoder:
    """Make the queries of whole requests: the one path for the trainer, the evaluator and the server.

    Args:
        sentences: the base's sentence encoder.
        calibration: the base's, for pooled picture features, or None.
    """

    def __init__(self, sentences: SentenceEncoder, calibration: ImageCalibration | None = None) -> None:
        self._sentences = sentences
        self._calibration = calibration

    def width(self, routing: RoutingSettings) -> int:
        """Return q for ``routing``."""
        return query_width(routing, self._sentences.width)

    def encode(
        self, texts: Sequence[str], pooled: Sequence[Tensor | None] | None, routing: RoutingSettings
    ) -> Tensor:
        """Return ``[B, q]`` unit queries of question texts and each request's pooled feature, if any."""
        return encode_queries(self._sentences.encode(list(texts)), pooled, routing, self._calibration)


def _picture_halves(
    image: Tensor | Sequence[Tensor | None] | None, text: Tensor, calibration: ImageCalibration | None
) -> Tensor:
    halves = torch.zeros_like(text)
    if image is None:
        return halves
    if len(image) != len(text):
        raise StateInvalid(f"{len(image)} pictures were given for {len(text)} questions")
    present = [index for index, row in enumerate(image) if row is not None]
    if present:
        rows = torch.stack([row for row in image if row is not None]).to(text.device)
        halves[present] = project_pooled(rows, text.shape[-1], calibration)
    return halves


@functools.lru_cache(maxsize=8)
def _projection(d_in: int, d_out: int) -> Tensor:
    """Return ``[d_in, d_out]`` random signs over sqrt(d_out), the same on every machine and torch version."""
    count = d_in * d_out
    seed = _PROJECTION_SEED + f" {d_in} {d_out}".encode()
    data = torch.frombuffer(bytearray(hashlib.shake_256(seed).digest((count + 7) // 8)), dtype=torch.uint8)
    bits = (data[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    signs = bits.flatten()[:count].float() * 2 - 1
    return signs.view(d_in, d_out) / math.sqrt(d_out)
