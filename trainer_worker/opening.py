"""Build a workshop from settings: the one place where the worker's settings become plain arguments."""

from __future__ import annotations

import torch
from transformers.utils.logging import disable_progress_bar

from adapter_store.base.load import load_base
from adapter_store.datasets import DatasetStore
from adapter_store.datasets.held_out import held_out_folder
from adapter_store.encoder import SentenceEncoder
from adapter_store.increments import attach
from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.lora.store import LoraStore
from adapter_store.queries import QueryEncoder
from adapter_store.rendering import Renderer
from adapter_store.state import RoutingSettings
from adapter_store.versions import VersionStore
from adapter_store.vision import VisionEncoder
from trainer_worker.features import Featurizer
from trainer_worker.gate import Policy
from trainer_worker.heldout import HeldOut
from trainer_worker.language import LanguageModel
from trainer_worker.metrics import WorkerMetrics
from trainer_worker.pretrain.scenes import generic_probe
from trainer_worker.replicas import Replicas, share_cores
from trainer_worker.retention import RetentionProbe
from trainer_worker.settings import WorkerSettings
from trainer_worker.workshop import Method, Workshop

LONGEST_SAMPLE = 2048


def open_workshop(settings: WorkerSettings) -> Workshop:
    """Load the base and open the stores.

    Raises:
        BaseModelError: the base cannot be used.
    """
    disable_progress_bar()
    base = load_base(settings.base, dtype=settings.dtype, device=settings.device, cache_dir=settings.cache)
    renderer = Renderer(base)
    queries = QueryEncoder(SentenceEncoder(base.sentence_encoder, base.model.device), base.calibration)
    held_out = held_out_folder(settings.home, settings.model_name)
    longest = min(LONGEST_SAMPLE, int(base.model.config.text_config.max_position_embeddings))
    increments = attach(base.model, settings.target_names, settings.frozen_share)
    language = LanguageModel.of(base.model, base.image_token_id, increments.first_layer)
    replicas, threads = share_cores(settings.threads, on_cpu=language.device.type == "cpu")
    torch.set_num_threads(threads)
    return Workshop(
        base=base,
        replicas=Replicas(language, increments, replicas),
        featurizer=Featurizer(
            renderer=renderer,
            vision=VisionEncoder(base, at_once=replicas),
            queries=queries,
            max_tokens=longest,
            threads=replicas,
        ),
        queries=queries,
        versions=VersionStore(settings.versions_url, settings.model_name),
        datasets=DatasetStore(settings.home / "datasets"),
        loras=LoraStore(settings.home / "loras"),
        held_out=HeldOut(
            held_out,
            ratio=settings.holdout_ratio,
            cap=settings.holdout_cap,
            max_chance=settings.max_chance,
        ),
        retention=RetentionProbe(
            generic_probe, count=settings.retention_questions, folder=held_out.parent / ".retention"
        ),
        metrics=metrics_of(settings),
        policy=policy_of(settings),
        defaults=defaults_of(settings),
        method=method_of(settings),
        prefix_cache_bytes=settings.prefix_cache_bytes,
        end_ids=renderer.stop_ids,
    )


def metrics_of(settings: WorkerSettings) -> WorkerMetrics:
    """Return the worker's series, with the bounds that alerts compare with."""
    metrics = WorkerMetrics()
    metrics.max_forgetting.set(settings.max_forgetting)
    metrics.max_leak.set(settings.max_leak)
    metrics.min_retention.set(settings.min_retention)
    return metrics


def policy_of(settings: WorkerSettings) -> Policy:
    """Return the bounds of the gate."""
    return Policy(
        max_forgetting=settings.max_forgetting,
        max_leak=settings.max_leak,
        min_retention=settings.min_retention,
        max_chance=settings.max_chance,
    )


def method_of(settings: WorkerSettings) -> Method:
    """Return what holds for a whole lineage."""
    return Method(
        rank=settings.rank,
        span=settings.span,
        routing=RoutingSettings(settings.routing, settings.top_m, settings.tau or 0.0),
        theta=settings.theta or None,
        contextual=settings.contextual,
        branch=settings.branch,
        calibrate_tau=settings.tau is None,
    )


def defaults_of(settings: WorkerSettings) -> Hyperparameters:
    """Return the hyperparameters of jobs that name none."""
    return Hyperparameters(
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        max_seconds=settings.max_train_seconds,
        ema_mode=settings.ema_mode,
        share=settings.share,
        rows_per_task=settings.rows_per_task,
        seed=settings.seed,
    )
