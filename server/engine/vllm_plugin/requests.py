"""Carry a request's coefficients from the gateway to the workers, inside vLLM's sampling parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from server.engine.vllm_plugin import CONFIG_KEY
from server.engine.vllm_plugin.pool import Pool, RequestGate


@dataclass(frozen=True, slots=True, eq=False)
class Gated:
    """Hold what a request of a version brings to the workers.

    Attributes:
        bank: where the version lies.
        gate: ``[R]`` float32, the coefficients spread over ranks; ``[k * rank]`` if there are ``rows``.
        start: position of the first adapted token.
        rows: the k increments of a large pool that the request touches; None computes the whole bank.
        rank: of each increment.
    """

    bank: int
    gate: torch.Tensor
    start: int
    rows: tuple[int, ...] | None
    rank: int

    @property
    def salt(self) -> bytes:
        """Return what tells this gate from others of the same version."""
        return f"{self.start}|{self.rows}|".encode() + self.gate.numpy().tobytes()


def to_extra_args(gated: Gated) -> dict[str, Any]:
    """Return what ``SamplingParams.extra_args`` takes."""
    plain = {"bank": gated.bank, "gate": gated.gate.numpy().tobytes(), "start": gated.start}
    if gated.rows is not None:
        plain |= {"rows": list(gated.rows), "rank": gated.rank}
    return {CONFIG_KEY: plain}


def gate_of_request(sampling_params: Any, pool: Pool) -> RequestGate | None:
    """Read what ``to_extra_args`` gave, as the pool computes with it; None for a request of the base.

    The gateway alone writes these arguments and has checked them: raising here would hang the engine.
    """
    extra = getattr(sampling_params, "extra_args", None)
    found = extra.get(CONFIG_KEY) if extra else None
    if found is None:
        return None
    values = torch.from_numpy(np.frombuffer(found["gate"], dtype=np.float32).copy())
    rows = found.get("rows")
    gathered = None if rows is None else pool.gather(found["bank"], tuple(rows), found["rank"])
    return RequestGate(found["bank"], values.to(pool.device, pool.dtype), found["start"], gathered)
