"""Settings of the trainer worker: read once at the entry point, then passed on as plain arguments."""

from __future__ import annotations

import os
import socket
from typing import Literal

from pydantic import Field

from adapter_store.jobs.hyperparameters import EmaMode
from adapter_store.settings import SharedSettings


def _default_worker_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class WorkerSettings(SharedSettings):
    """Claim training jobs, learn increments, measure, gate and publish versions."""

    metrics_host: str = Field(default="127.0.0.1", description="address of the worker's /metrics")
    metrics_port: int = Field(default=9101, ge=0, le=65535, description="port of /metrics; 0: any free one")
    worker_id: str = Field(default_factory=_default_worker_id, description="name in the queue; unique")
    lease_seconds: float = Field(default=30, gt=0, le=3600, description="a silent worker loses its job then")
    max_deliveries: int = Field(default=3, ge=1, le=100, description="attempts before a job is given up")
    nice: int = Field(default=10, ge=0, le=19, description="how far the worker steps back behind the gateway")
    prefix_cache_bytes: int = Field(
        default=1600 * 2**20, ge=0, description="memory for the keys and values of training pictures"
    )
    max_forgetting: float = Field(default=0.02, ge=0, le=1, description="gate: largest drop of a task (0.02)")
    max_leak: float = Field(default=0.05, ge=0, le=1, description="gate: largest routing leak of a task")
    min_retention: float = Field(default=0.97, ge=0, le=1, description="gate: least zero-shot retention")
    retention_questions: int = Field(default=60, ge=0, le=5000, description="general questions to ask")
    holdout_cap: int = Field(default=200, ge=0, description="most pictures kept per task")
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of keys, increments and batches")
    rank: int = Field(default=8, ge=1, le=256, description="rank r of every increment")
    rows_per_task: int = Field(default=4, ge=1, le=256, description="increments S that a new task gets")
    top_m: int = Field(default=4, ge=1, le=256, description="increments M that answer a request")
    routing: Literal["text", "text+image"] = Field(
        default="text+image", description="what finds a request's increments"
    )
    span: Literal["after_image", "all"] = Field(
        default="after_image", description="tokens that increments act on"
    )
    theta: float = Field(default=0, ge=0, le=1, description="bar of retrain or expand; 0: calibrated")
    tau: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="least cosine for increments to answer (eq. 5); unset: calibrated",
    )
    contextual: bool = Field(default=True, description="new tasks may use what earlier ones learned (eq. 4)")
    branch: bool = Field(
        default=True, description="a known task met in another shape learns it in copies of its increments"
    )
    ema_mode: EmaMode = Field(
        default="normalised", description="weight of the EMA-balanced update (eqs. 8-10)"
    )
    share: bool = Field(default=False, description="let a batch move the increments of other tasks it uses")
    epochs: float = Field(
        default=0,
        ge=0,
        le=10_000,
        description="passes over training pictures; 0: four, more of a small batch",
    )
    learning_rate: float = Field(default=1.5e-3, gt=0, le=1, description="peak learning rate, relative")
    batch_size: int = Field(default=16, ge=1, le=4096, description="questions per optimizer step")
    max_train_seconds: float = Field(default=0, ge=0, description="limit of a job's training steps; 0: none")
