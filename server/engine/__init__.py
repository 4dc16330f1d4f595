"""Inference engines behind one small protocol; importing this package loads no torch."""

from server.engine.protocol import (
    BASE_VERSION,
    Chunk,
    Engine,
    EngineStats,
    FinishReason,
    GenerationRequest,
    Sampling,
    TokenLogprob,
    TopLogprob,
)

__all__ = [
    "BASE_VERSION",
    "Chunk",
    "Engine",
    "EngineStats",
    "FinishReason",
    "GenerationRequest",
    "Sampling",
    "TokenLogprob",
    "TopLogprob",
]
