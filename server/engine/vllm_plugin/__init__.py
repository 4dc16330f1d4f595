"""What runs inside vLLM's processes: a pool of increments on chosen linears, on public hooks only.

vLLM calls ``register`` in each of its processes through the entry point ``vllm.general_plugins``. It names
the model class of ``model``; everything else follows from that class and from ``additional_config``.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import warnings

ARCHITECTURE = "LlavaForConditionalGeneration"
CONFIG_KEY = "strata"
"""Where ``additional_config`` and a request's ``extra_args`` carry what is ours."""

OURS_VARIABLE = "_STRATA_ENGINE"
"""Set to 1 by the gateway for the processes of its own engine; any other vLLM is left as it is."""

LEVEL_VARIABLE = "VLLM_LOGGING_LEVEL"
"""The level of vLLM's own logs, in the gateway and in every process of its engine."""

_MODEL = "server.engine.vllm_plugin.model:PooledLlava"


def register() -> None:
    """Have vLLM build ``PooledLlava`` for LLaVA checkpoints; in processes of its own, log and end as ours do.

    A vLLM that the gateway did not start is left as it is.
    """
    if os.environ.get(OURS_VARIABLE) != "1":
        return
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, _MODEL)
    if multiprocessing.parent_process() is not None:
        from server.engine.vllm_plugin.orphans import end_with_parent
        from server.logs import configure_logs

        configure_logs()
        quieten()
        end_with_parent()


def quieten() -> None:
    """Log of vLLM only what its own variable asks for: at a start it warns of dozens of things by default."""
    level = os.environ.get(LEVEL_VARIABLE, "ERROR").upper()
    logging.getLogger("vllm").setLevel(level if level in logging.getLevelNamesMapping() else "ERROR")
    if not logging.getLogger("vllm").isEnabledFor(logging.WARNING):
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")
