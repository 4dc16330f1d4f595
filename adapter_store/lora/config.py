"""Read ``adapter_config.json``: a plain LoRA with one rank and one scaling, and nothing that changes more."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_store.datasets.records import FaultList, shown
from adapter_store.lora import CONFIG_FILE

MAX_CONFIG_BYTES = 1 << 20
MAX_RANK = 1 << 16


def room_for(rank: int, increment_rank: int, top_m: int) -> str:
    """Say which rank an import may have, and which lineage would take ``rank``."""
    room = f"{top_m} increments of rank {increment_rank} answer a request, {top_m * increment_rank} together"
    return f"{room}; a lineage that begins with --rank {math.ceil(rank / top_m)} has room for it"


MAX_ALPHA = 1e9
_ABOUT = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "init_lora_weights", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
    *("qalora_group_size", "megatron_core", "ensure_weight_tying"),
}
"""Fields that say how the factors were trained or where they lie; the tensors themselves tell the rest."""
_REASONS = {
    "use_dora": "DoRA scales the base's weights too; train a plain LoRA",
    "bias": "biases cannot become increments; train with bias='none'",
    "lora_bias": "biases cannot become increments; train with lora_bias=False",
    "modules_to_save": "whole modules cannot become increments; train without modules_to_save",
    "trainable_token_indices": "embedding layers are not adapted; train without trainable tokens",
    "alpha_pattern": "all linears need one alpha; train without alpha_pattern",
    "rank_pattern": "all linears need one rank; train without rank_pattern",
}
_OTHER = "it makes more of the adapter than a plain LoRA; train without it"
_UNSET: tuple[Any, ...] = (None, False, "none", {}, [])
_PLAIN_STARTS: tuple[Any, ...] = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class Scale:
    """Rank r, and the factor on ``B A``: ``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA."""

    rank: int
    scaling: float


def check_config(path: Path, faults: FaultList) -> Scale | None:
    """Note every fault of a configuration; return rank and scaling if these can be read."""
    config = _read(path, faults)
    if config is None:
        return None

    def note(name: str, reason: str) -> None:
        faults.add(None, name, reason, CONFIG_FILE)

    if config.get("peft_type") != "LORA":
        kind = shown(str(config.get("peft_type")), 40)
        note("peft_type", f"the adapter is of type {kind}; only LORA can be imported")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        start = shown(str(config["init_lora_weights"]), 40)
        note("init_lora_weights", f"the start {start!r} changes the base's own weights; convert it to a LoRA")
    for name in sorted(config.keys() - _ABOUT):
        if config[name] not in _UNSET:
            note(shown(name, 60), _REASONS.get(name, _OTHER))
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
        note("r", f"the rank must be a whole number of 1 to {MAX_RANK}")
        rank = None
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) <= MAX_ALPHA:
        note("lora_alpha", f"it must be a number of at most {MAX_ALPHA:.0e}")
        alpha = None
    if rank is None or alpha is None:
        return None
    return Scale(rank, alpha / (math.sqrt(rank) if config.get("use_rslora") is True else rank))


def _read(path: Path, faults: FaultList) -> dict[str, Any] | None:
    reason = None
    if not path.is_file():
        reason = "the file is missing; pack it beside the other"
    elif path.stat().st_size > MAX_CONFIG_BYTES:
        reason = f"the file has {path.stat().st_size} bytes; at most {MAX_CONFIG_BYTES} are read"
    else:
        try:
            config = json.loads(path.read_bytes())
            if isinstance(config, dict):
                return config
        except (ValueError, RecursionError):
            pass
        reason = "the file is not a JSON object; save the adapter again"
    faults.add(None, "", reason, CONFIG_FILE)
    return None
