"""Prometheus series of the worker, on a registry of its own (labels are bounded: tasks, phases, kinds)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from adapter_store.errors import StrataError
from adapter_store.jobs.record import JobStatus
from trainer_worker.ema import HISTOGRAM_EDGES

PHASES = ("validate", "encode", "decide", "keys", "train", "evaluate", "gate", "publish")
PHASE_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 3600)
DECISIONS = ("promoted", "held_back", "conflict", "superseded")


class WorkerMetrics:
    """Hold the worker's series; one object per process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.jobs = Counter("strata_jobs", "Finished jobs", ["status"], registry=registry)
        self.redeliveries = Counter("strata_job_redeliveries", "Jobs taken up again", registry=registry)
        self.phase_seconds = Histogram(
            "strata_job_seconds",
            "Seconds per phase of a job",
            ["phase"],
            buckets=PHASE_SECONDS,
            registry=registry,
        )
        self.busy = Gauge("strata_worker_busy", "1 while a job runs", registry=registry)
        self.heartbeat = Gauge(
            "strata_worker_heartbeat_timestamp_seconds", "When the worker last showed life", registry=registry
        )
        self.loss = Gauge("strata_training_loss", "Loss of the latest training step", registry=registry)
        self.rate = Gauge("strata_training_samples_per_second", "Training speed", registry=registry)
        self.alpha = Histogram(
            "strata_ema_alpha",
            "Weight of new parameters",
            ["kind"],
            buckets=HISTOGRAM_EDGES[1:],
            registry=registry,
        )
        self.fallback = Gauge(
            "strata_ema_fallback_ratio", "Share of EMA weights that fell back", ["kind"], registry=registry
        )
        self.accuracy = Gauge(
            "strata_candidate_task_accuracy_ratio",
            "Accuracy of the latest version",
            ["task"],
            registry=registry,
        )
        self.forgetting = Gauge(
            "strata_candidate_task_forgetting_ratio", "Drop since the best stage", ["task"], registry=registry
        )
        self.leak = Gauge(
            "strata_candidate_routing_leak_ratio",
            "Mass outside a task's own rows",
            ["task"],
            registry=registry,
        )
        self.retention = Gauge(
            "strata_candidate_zero_shot_retention_ratio",
            "Score beside the base's, untaught",
            registry=registry,
        )
        self.max_forgetting = Gauge(
            "strata_policy_max_forgetting_ratio",
            "Largest drop of a known task that the gate lets pass",
            registry=registry,
        )
        self.max_leak = Gauge(
            "strata_policy_max_leak_ratio", "Largest routing leak that the gate lets pass", registry=registry
        )
        self.min_retention = Gauge(
            "strata_policy_min_retention_ratio",
            "Least zero-shot retention that the gate lets pass",
            registry=registry,
        )
        self.promotions = Counter(
            "strata_promotions", "Versions promoted or held back", ["decision"], registry=registry
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Make the known labels: a series that first appears with 1 never increases from 0.

        What is not known yet is no number, lest a 0 be read as measured.
        """
        for gauge in (self.loss, self.rate, self.retention):
            gauge.set(math.nan)
        for status in JobStatus:
            if status.terminal:
                self.jobs.labels(str(status))
        for phase in PHASES:
            self.phase_seconds.labels(phase)
        for decision in DECISIONS:
            self.promotions.labels(decision)

    def serve(self, host: str, port: int) -> int:
        """Serve ``/metrics`` from a thread; return the port (``port`` 0: any free one).

        Raises:
            StrataError: the address is taken or not this machine's.
        """
        try:
            server, _ = start_http_server(port, host, registry=self.registry)
        except OSError as error:
            raise StrataError(
                f"/metrics cannot be served on {host}:{port} ({error.strerror}): another worker may use it;"
                " give each worker its own --metrics-port, or 0 for any free one",
                param="metrics_port",
            ) from error
        return int(server.server_port)

    def alive(self) -> None:
        """Note that the worker's loop or heartbeat thread runs."""
        self.heartbeat.set(time.time())

    def measured(
        self,
        accuracy: Mapping[str, float | None],
        forgetting: Mapping[str, float | None],
        leak: Mapping[str, float],
        retention: float | None,
    ) -> None:
        """Show what the latest evaluation found."""
        for gauge, values in ((self.accuracy, accuracy), (self.forgetting, forgetting), (self.leak, leak)):
            gauge.clear()  # a task that was rolled back is no longer measured
            for task, value in values.items():
                if value is not None:
                    gauge.labels(task).set(value)
        self.retention.set(math.nan if retention is None else retention)
