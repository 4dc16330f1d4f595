"""Choose the sizes that depend on the device when nobody names them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

_MIB = 1024 * 1024
_GPU_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """Bound a step's prompt tokens and the memory of keys and values.

    ``prefill_tokens`` counts when no row decodes, ``mixed_prefill_tokens`` when rows would wait for the step.
    """

    prefill_tokens: int
    mixed_prefill_tokens: int
    kv_bytes: int
    prefix_cache_bytes: int

    def but(self, **named: int | None) -> Limits:
        """Return these limits with those that are named, which None is not."""
        return replace(self, **{name: value for name, value in named.items() if value is not None})


def device_limits(device: torch.device) -> Limits:
    """Give small sizes for a CPU, and a GPU's share of its free memory."""
    if device.type != "cuda":
        return Limits(512, 128, 1024 * _MIB, 512 * _MIB)
    free, _ = torch.cuda.mem_get_info(device)
    share = int(free * _GPU_SHARE)
    return Limits(8192, 2048, share * 3 // 4, share // 4)
