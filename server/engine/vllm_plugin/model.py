"""vLLM's LLaVA with a resident pool of increments on its language model.

The class keeps vLLM's own weight names and forward pass. Pictures reach it as projected tokens: tower and
projector are frozen and the same for all versions, so the gateway encodes every picture once, whatever
engine answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.config import CompilationMode, VllmConfig
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from server.engine.vllm_plugin import CONFIG_KEY
from server.engine.vllm_plugin.linears import Target, adapt
from server.engine.vllm_plugin.pool import Pool

_WEIGHTS = ("model.", "language_model.", "lm_head.", "vision_tower.", "multi_modal_projector.")


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Say how large the pool is and where it acts; travels in vLLM's ``additional_config``.

    Attributes:
        targets: linears that versions adapt.
        frozen_share: part of the decoder layers, from the bottom, that no version adapts.
        banks: versions resident at once.
        capacity: total rank of a bank.
    """

    targets: tuple[str, ...]
    frozen_share: float
    banks: int
    capacity: int

    def to_config(self) -> dict[str, Any]:
        """Return what ``additional_config`` takes."""
        return {CONFIG_KEY: asdict(self)}

    @classmethod
    def from_config(cls, config: VllmConfig) -> PoolSettings | None:
        """Read what ``to_config`` gave; None if it is not there."""
        extra = config.additional_config
        found = extra.get(CONFIG_KEY) if isinstance(extra, dict) else None
        return None if found is None else cls(**{**found, "targets": tuple(found["targets"])})


@MULTIMODAL_REGISTRY.register_processor(
    LlavaMultiModalProcessor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PooledLlava(LlavaForConditionalGeneration):
    """A LLaVA that adds each token's increments to chosen linears; without settings the plain one.

    Attributes:
        pool: banks and gates, or None.
        pooled: the increments by target.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.pool: Pool | None = None
        self.pooled: dict[str, Target] = {}
        settings = PoolSettings.from_config(vllm_config)
        if settings is not None:
            self._add_pool(vllm_config, settings)

    def _add_pool(self, config: VllmConfig, settings: PoolSettings) -> None:
        language_model: Any = self.language_model
        layers = language_model.model.layers
        eager = config.compilation_config.mode == CompilationMode.NONE and not _captures(config)
        self.pool = Pool(
            banks=settings.banks,
            capacity=settings.capacity,
            max_tokens=config.scheduler_config.max_num_batched_tokens,
            dtype=config.model_config.dtype,
            device=next(layers.parameters()).device,
            fixed=not eager,
        )
        first = int(settings.frozen_share * len(layers))
        self.pooled = adapt(layers, settings.targets, first, self.pool)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a checkpoint, passing over tensors in its folder that are not the model's."""
        return super().load_weights((name, tensor) for name, tensor in weights if name.startswith(_WEIGHTS))

    def get_model_state_cls(self) -> type:
        """Tell the newer model runner what keeps this model's state between steps."""
        from server.engine.vllm_plugin.model_state import PooledModelState

        return PooledModelState


def _captures(config: VllmConfig) -> bool:
    mode = config.compilation_config.cudagraph_mode
    return torch.cuda.is_available() and mode is not None and bool(mode.value)
