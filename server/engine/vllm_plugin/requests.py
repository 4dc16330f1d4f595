"""Carry a request's coefficients from the gateway to the workers, inside vLLM's sampling parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from server.engine.vllm_plugin import CONFIG_KEY
from server.engine.vllm_plugin.pool import Pool, RequestGate


def to_extra_args(bank: int, gate: torch.Tensor, start: int) -> dict[str, Any]:
    """Return what ``SamplingParams.extra_args`` takes.

    Args:
        bank: where the request's version lies.
        gate: ``[R]`` float32, the coefficients spread over ranks.
        start: position of the first adapted token.
    """
    return {CONFIG_KEY: {"bank": bank, "gate": gate.numpy().tobytes(), "start": start}}


def gate_of_request(sampling_params: Any, pool: Pool) -> RequestGate | None:
    """Read what ``to_extra_args`` gave, as the pool computes with it; None for a request of the base.

    The gateway alone writes these arguments and has checked them: raising here would hang the engine.
    """
    extra = getattr(sampling_params, "extra_args", None)
    found = extra.get(CONFIG_KEY) if extra else None
    if found is None:
        return None
    values = torch.from_numpy(np.frombuffer(found["gate"], dtype=np.float32).copy())
    return RequestGate(found["bank"], values.to(pool.device, pool.dtype), found["start"])
