"""The gateway's Prometheus series, in a registry of their own.

Labels are bounded: route templates, outcomes, tasks of the served version, aliases. Nothing that a client
sends becomes a label value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adapter_store.errors import (
    BaseMismatch,
    ProbeFailed,
    StateError,
    StateInvalid,
    TargetMismatch,
    VersionCorrupt,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SWAPS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_REFUSALS = (VersionCorrupt, ProbeFailed, StateError, BaseMismatch, TargetMismatch, StateInvalid)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Metrics:
    """Hold every series of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._build_http()
        self._build_answers()
        self._build_adapters()
        self._build_quality()
        self._build_queue()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"strata_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"strata_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(f"strata_{name}", text, labels, buckets=tuple(buckets), registry=self.registry)

    def _build_http(self) -> None:
        self.http_requests = self._counter("http_requests_total", "Requests.", "route", "method", "status")
        self.http_seconds = self._histogram(
            "http_request_seconds", "Time to the end of an answer.", _LATENCY, "route"
        )

    def _build_answers(self) -> None:
        self.generations = self._counter(
            "generations_total", "Finished answers by how they ended.", "outcome"
        )
        self.first_token_seconds = self._histogram(
            "time_to_first_token_seconds", "From the request to the first token.", _LATENCY
        )
        self.routing_seconds = self._histogram(
            "routing_seconds", "Finding which increments answer, once the pictures are encoded.", _GAPS
        )
        self.token_gap_seconds = self._histogram("token_gap_seconds", "Between two chunks of tokens.", _GAPS)
        self.tokens = self._counter("tokens_total", "Tokens read and written.", "kind")
        self.routed = self._counter(
            "routed_requests_total", "Requests by the task whose increments weigh most.", "task"
        )
        self.unrouted = self._counter(
            "unrouted_requests_total", "Requests of a learned version that the base alone answered."
        )

    def _build_adapters(self) -> None:
        self.alias_info = self._gauge(
            "adapter_alias_info", "1 for the version an alias names.", "alias", "version"
        )
        self.swap_seconds = self._histogram(
            "adapter_swap_seconds", "From seeing a moved alias to serving its version.", _SWAPS
        )
        self.publish_to_served_seconds = self._gauge(
            "adapter_publish_to_served_seconds", "From the last version's publication to its being served."
        )
        self.loads = self._counter(
            "adapter_loads_total", "Versions loaded into a bank, by outcome.", "outcome"
        )
        self.inflight = self._gauge("adapter_inflight_requests", "Requests in flight by bank.", "slot")
        self.rejected = self._counter(
            "adapter_rejections_total", "Versions refused before use, by reason.", "reason"
        )
        for refusal in _REFUSALS:  # a series that first appears with 1 never increases from 0
            self.rejected.labels(refusal.code)

    def _build_quality(self) -> None:
        self.task_accuracy = self._gauge(
            "task_accuracy_ratio", "Held-out accuracy of the stable version.", "task"
        )
        self.task_forgetting = self._gauge(
            "task_forgetting_ratio", "Best past accuracy minus the present.", "task"
        )
        self.average_accuracy = self._gauge(
            "average_accuracy_ratio", "Mean held-out accuracy over known tasks."
        )
        self.backward_transfer = self._gauge("backward_transfer_ratio", "Mean later change of earlier tasks.")
        self.routing_leak = self._gauge(
            "routing_leak_ratio", "Coefficient mass on other tasks' rows.", "task"
        )
        self.retention = self._gauge("zero_shot_retention_ratio", "Score on untaught tasks over the base's.")

    def _build_queue(self) -> None:
        self.queue_up = self._gauge("queue_up", "1 while Redis answers.")
        self.queue_depth = self._gauge("queue_depth", "Jobs that wait for a worker.")
        self.queue_oldest_seconds = self._gauge("queue_oldest_seconds", "Age of the oldest waiting job.")
        self.submissions = self._counter("submissions_total", "Submitted jobs by outcome.", "outcome")
        self.feedback = self._counter(
            "feedback_total", "Thumbs and corrections, by the alias of what had answered.", "rating", "alias"
        )
        for rating in ("up", "down"):
            for alias in ("stable", "canary", "other"):
                self.feedback.labels(rating, alias)

    def observe_http(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request under its route template."""
        name = method if method in _METHODS else "other"
        self.http_requests.labels(route, name, str(status)).inc()
        self.http_seconds.labels(route).observe(seconds)

    def show_aliases(self, versions: Mapping[str, str]) -> None:
        """Publish which version every alias names."""
        self.alias_info.clear()
        for alias, version in versions.items():
            self.alias_info.labels(alias, version).set(1)

    def show_inflight(self, requests: Mapping[str, int]) -> None:
        """Publish the requests in flight of each bank."""
        for slot, count in requests.items():
            self.inflight.labels(slot).set(count)

    def show_quality(
        self,
        *,
        accuracy: Mapping[str, float],
        forgetting: Mapping[str, float],
        leak: Mapping[str, float],
        average: float | None,
        backward_transfer: float | None,
        retention: float | None,
    ) -> None:
        """Publish what was measured for the served version; None and NaN are left out."""
        for gauge, values in (
            (self.task_accuracy, accuracy),
            (self.task_forgetting, forgetting),
            (self.routing_leak, leak),
        ):
            gauge.clear()
            for task, value in values.items():
                if not math.isnan(value):
                    gauge.labels(task).set(value)
        for single, value in (
            (self.average_accuracy, average),
            (self.backward_transfer, backward_transfer),
            (self.retention, retention),
        ):
            single.set(math.nan if value is None else value)

    def show_queue(self, depth: int | None, oldest_seconds: float | None) -> None:
        """Publish the queue's state; ``depth`` None says that Redis is gone."""
        self.queue_up.set(0 if depth is None else 1)
        self.queue_depth.set(math.nan if depth is None else depth)
        self.queue_oldest_seconds.set(math.nan if depth is None else (oldest_seconds or 0.0))

    def watch_engine(self, read: Callable[[], Any]) -> None:
        """Add the engine's own counters, read at every scrape, and vLLM's series if it runs."""
        self.registry.register(_EngineCollector(read))
        self.registry.register(_VllmCollector())

    def render(self) -> bytes:
        """Return the text exposition."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Turn the engine's counters into series: names ending in ``_total`` are counters, numbers gauges."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each numeric field."""
        stats = self._read()
        for name in stats.__slots__:
            value = getattr(stats, name)
            if not isinstance(value, int | float) or math.isnan(value):
                continue
            text = f"Engine: {name.removesuffix('_total').replace('_', ' ')}."
            if name.endswith("_total"):
                yield CounterMetricFamily(f"strata_engine_{name}", text, value=float(value))
            else:
                yield GaugeMetricFamily(f"strata_engine_{name}", text, value=float(value))


class _VllmCollector(Collector):
    """Pass on what vLLM counts: it registers its series in prometheus-client's common registry."""

    def collect(self) -> Iterator[Metric]:
        """Yield vLLM's families; none with another engine."""
        return (family for family in REGISTRY.collect() if family.name.startswith("vllm:"))
