"""Say how vLLM is run, and translate that into its own arguments."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapter_store.settings import DENSE_RANK
from server.engine.vllm_plugin import LEVEL_VARIABLE, OURS_VARIABLE, quieten
from server.logs import LOGGER_NAME

if TYPE_CHECKING:
    from pathlib import Path

    import torch

_WORKER_EXTENSION = "server.engine.vllm_plugin.worker.PoolWorker"
_CPU_STEP_TOKENS = 512
_CPU_KV_BYTES = 1 << 30
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CONFIGURE_LOGGING": "0",  # logs are JSON lines, the gateway's and the engine's
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer and the gateway run on the same cores
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """Hold what the operator chose.

    Attributes:
        targets: linears that versions adapt.
        frozen_share: part of the decoder layers, from the bottom, that no version adapts.
        banks: versions resident at once.
        pool_rank: total rank that a bank has room for; without graphs it grows.
        dense_rank: total rank up to which a pool is computed whole; not used in graphs.
        max_batch: requests that run at once.
        max_waiting: requests that may wait; one more is refused.
        max_model_len: longest prompt + answer, in tokens.
        own_process: run the engine as processes of its own.
        tensor_parallel_size: devices that share the model.
        gpu_memory_utilization: share of a GPU's memory for model, keys and values.
        kv_bytes: memory of keys and values; None is 1 GiB on a CPU, else up to ``gpu_memory_utilization``.
        step_tokens: most tokens of a step; None is 512 on a CPU and what vLLM takes on a GPU.
        block_size: tokens of a block of the key-value memory, the grain of prefix reuse; None is vLLM's own.
        eager: never compile or capture graphs; None is true on a CPU.
        threads: CPU threads of an engine process; 0 leaves it to torch.
    """

    targets: tuple[str, ...] = ("o_proj",)
    frozen_share: float = 0.0
    banks: int = 2
    pool_rank: int = 512
    dense_rank: int = DENSE_RANK
    max_batch: int = 32
    max_waiting: int = 256
    max_model_len: int = 2048
    own_process: bool = True
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.6
    kv_bytes: int | None = None
    step_tokens: int | None = None
    block_size: int | None = None
    eager: bool | None = None
    threads: int = 0


def prepare_environment(options: VllmOptions) -> None:
    """Set what vLLM reads from the environment, unless it is set already; call before importing vLLM."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if logging.getLogger(LOGGER_NAME).isEnabledFor(logging.DEBUG):
        os.environ.setdefault(LEVEL_VARIABLE, "DEBUG")
    os.environ.setdefault(LEVEL_VARIABLE, "ERROR")
    quieten()
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ[OURS_VARIABLE] = "1"
    # The core says itself whether it is a process; on a CPU this would add a worker process to that.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def engine_args(options: VllmOptions, model: Path, dtype: torch.dtype, *, on_cpu: bool) -> Any:
    """Return vLLM's ``AsyncEngineArgs``.

    Args:
        options: what the operator chose.
        model: folder of the base.
        dtype: what the model computes in.
        on_cpu: whether this is vLLM's CPU build.
    """
    from vllm import AsyncEngineArgs

    from server.engine.vllm_plugin.model import PoolSettings

    pool = PoolSettings(options.targets, options.frozen_share, options.banks, options.pool_rank)
    step_tokens = options.step_tokens or (_CPU_STEP_TOKENS if on_cpu else None)
    return AsyncEngineArgs(
        model=str(model),
        dtype=str(dtype).removeprefix("torch."),  # pyright: ignore[reportArgumentType]
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_batch,
        max_num_batched_tokens=None if step_tokens is None else max(step_tokens, options.max_batch),
        enable_chunked_prefill=True,
        enable_prefix_caching=True,
        block_size=options.block_size,
        use_tqdm_on_load=False,
        enforce_eager=on_cpu if options.eager is None else options.eager,
        tensor_parallel_size=options.tensor_parallel_size,
        gpu_memory_utilization=options.gpu_memory_utilization,
        kv_cache_memory_bytes=options.kv_bytes or (_CPU_KV_BYTES if on_cpu else None),
        limit_mm_per_prompt={"image": 0},  # pixels never come; projected tokens do
        enable_mm_embeds=True,
        mm_processor_cache_gb=0,
        additional_config=pool.to_config(),
        worker_extension_cls=_WORKER_EXTENSION,
        served_model_name=model.name,  # a label of vLLM's series
        disable_log_stats=False,
        enable_log_requests=False,
    )
