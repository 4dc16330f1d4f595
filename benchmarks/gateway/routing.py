"""What routing is made of: the sentence encoder and the coefficients, alone and in batches."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from adapter_store.encoder import SentenceEncoder
from adapter_store.queries import encode_queries
from adapter_store.routing import coefficients
from adapter_store.state import AdapterState


@dataclass(frozen=True, slots=True)
class RoutingParts:
    """Hold median milliseconds of one batch of ``questions`` texts that were never seen."""

    questions: int
    sentences_ms: float
    coefficients_ms: float


def routing_parts(
    encoder: Path, state: AdapterState, sizes: tuple[int, ...] = (1, 32), repeats: int = 7
) -> list[RoutingParts]:
    """Time the parts of routing for batches of new questions.

    Args:
        encoder: folder of the sentence encoder.
        state: what is routed over.
        sizes: questions of a batch.
        repeats: batches of each size; the first is not counted.
    """
    sentences = SentenceEncoder(encoder)
    found: list[RoutingParts] = []
    for size in sizes:
        encoding: list[float] = []
        weighing: list[float] = []
        for repeat in range(repeats + 1):
            texts = [f"What is written on sign {repeat} of row {number}, and why?" for number in range(size)]
            began = time.perf_counter()
            vectors = sentences.encode([f"{size}: {text}" for text in texts])
            encoding.append(time.perf_counter() - began)
            began = time.perf_counter()
            coefficients(state, encode_queries(vectors, None, state.routing, None))
            weighing.append(time.perf_counter() - began)
        parts = [1000 * statistics.median(values[1:]) for values in (encoding, weighing)]
        found.append(RoutingParts(size, *parts))
    return found
