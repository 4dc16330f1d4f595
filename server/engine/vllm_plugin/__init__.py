"""What runs inside vLLM's processes: a pool of increments on chosen linears, on public hooks only.

vLLM calls ``register`` in each of its processes through the entry point ``vllm.general_plugins``. It names
the model class of ``model``; everything else follows from that class and from ``additional_config``.
"""

from __future__ import annotations

import multiprocessing
import os

ARCHITECTURE = "LlavaForConditionalGeneration"
CONFIG_KEY = "strata"
"""Where ``additional_config`` and a request's ``extra_args`` carry what is ours."""

LOGGING_VARIABLE = "VLLM_CONFIGURE_LOGGING"
"""Set to 0 by the gateway: vLLM leaves the logs to us."""

_MODEL = "server.engine.vllm_plugin.model:PooledLlava"


def register() -> None:
    """Have vLLM build ``PooledLlava`` for LLaVA checkpoints; in its processes, log and end as ours do."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, _MODEL)
    if multiprocessing.parent_process() is not None and os.environ.get(LOGGING_VARIABLE) == "0":
        from server.engine.vllm_plugin.orphans import end_with_parent
        from server.logs import configure_logs

        configure_logs()
        end_with_parent()
