"""What runs inside vLLM's processes: a pool of increments on chosen linears, on public hooks only.

vLLM calls ``register`` in each of its processes through the entry point ``vllm.general_plugins``. It names the
model class of ``model``; everything else follows from that class and from ``additional_config``.
"""

from __future__ import annotations

ARCHITECTURE = "LlavaForConditionalGeneration"
CONFIG_KEY = "strata"
"""Where ``additional_config`` and a request's ``extra_args`` carry what is ours."""

_MODEL = "server.engine.vllm_plugin.model:PooledLlava"


def register() -> None:
    """Have vLLM build ``PooledLlava`` for LLaVA checkpoints, and end with the process that started us."""
    from vllm import ModelRegistry

    from server.engine.vllm_plugin.orphans import end_with_parent

    end_with_parent()
    ModelRegistry.register_model(ARCHITECTURE, _MODEL)
