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
from adapter_store.matrix import AccuracyMatrix
from adapter_store.names import BASE_VERSION

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SWAPS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_REFUSALS = (VersionCorrupt, ProbeFailed, StateError, BaseMismatch, TargetMismatch, StateInvalid)
_SLOTS = ("stable", "canary", "shadow")
_COMPARED = ("same", "different", "dropped", "failed")
_DECISIONS = ("promoted", "rolled_back", "errors", "slowdown", "thumbs_down")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_ENDINGS = ("stop", "length", "error", "abort", "refused")
MATRIX_STAGES, MATRIX_CELLS = 20, 2000
"""Most rows and most cells of the accuracy matrix that become series: a lineage may grow for years."""


class Metrics:
    """Hold every series of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._shown: dict[Gauge, set[tuple[str, ...]]] = {}
        self._build_http()
        self._build_answers()
        self._build_adapters()
        self._build_slots()
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
        for ending in _ENDINGS:  # a series that first appears with 1 never increases from 0
            self.generations.labels(ending)
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
        self.alias_version = self._gauge(
            "adapter_alias_version", "Number of the version an alias names; 0: the base.", "alias"
        )
        self.alias_moved = self._gauge(
            "adapter_alias_moved_timestamp_seconds", "When an alias moved last.", "alias", "version"
        )
        self.served_version = self._gauge(
            "adapter_served_version", "Number of the version that answers as stable; 0: the base."
        )
        self.served_version.set(math.nan)
        self.swap_seconds = self._histogram(
            "adapter_swap_seconds", "From seeing a moved alias to serving its version.", _SWAPS
        )
        self.publish_to_served_seconds = self._gauge(
            "adapter_publish_to_served_seconds", "From the last version's publication to its being served."
        )
        self.publish_to_served_seconds.set(math.nan)
        self.loads = self._counter(
            "adapter_loads_total", "Versions loaded into a bank, by outcome.", "outcome"
        )
        for outcome in ("ok", "refused"):
            self.loads.labels(outcome)
        self.inflight = self._gauge("adapter_inflight_requests", "Requests in flight by bank.", "slot")
        self.rejected = self._counter(
            "adapter_rejections_total", "Versions refused before use, by reason.", "reason"
        )
        for refusal in _REFUSALS:
            self.rejected.labels(refusal.code)

    def _build_slots(self) -> None:
        """Add what compares stable, canary and shadow; every label value is there from the start."""
        self.slot_requests = self._counter("slot_requests_total", "Answers of the plain name.", "slot")
        self.slot_errors = self._counter("slot_errors_total", "Those that failed.", "slot")
        self.slot_seconds = self._histogram("slot_request_seconds", "Until the end.", _LATENCY, "slot")
        self.slot_first_token = self._histogram(
            "slot_first_token_seconds", "From the request to the first token.", _LATENCY, "slot"
        )
        self.slot_token = self._histogram(
            "slot_token_seconds", "Mean of each further token of an answer.", _GAPS, "slot"
        )
        self.slot_thumbs = self._gauge(
            "slot_thumbs", "Thumbs for the version since it takes part.", "slot", "rating"
        )
        self.slot_ready = self._gauge("slot_ready", "1 while its version is staged and probed.", "slot")
        self.shadow_compared = self._counter(
            "shadow_compared_total", "Answers that the shadow was to give again, by outcome.", "outcome"
        )
        self.canary_decisions = self._counter(
            "canary_decisions_total", "How canaries ended here: by whom, or by which rule.", "decision"
        )
        for slot in _SLOTS:
            self.slot_requests.labels(slot)
            self.slot_errors.labels(slot)
            self.show_slot(slot, ready=False, up=0, down=0)
        for outcome in _COMPARED:
            self.shadow_compared.labels(outcome)
        for decision in _DECISIONS:
            self.canary_decisions.labels(decision)

    def observe_slot(
        self, slot: str, whole: float, *, first_token: float | None, token: float | None, failed: bool
    ) -> None:
        """Count one answer of stable, canary or shadow; times are in seconds, None where not known."""
        self.slot_requests.labels(slot).inc()
        self.slot_seconds.labels(slot).observe(whole)
        if failed:
            self.slot_errors.labels(slot).inc()
            return
        for histogram, seconds in ((self.slot_first_token, first_token), (self.slot_token, token)):
            if seconds is not None:
                histogram.labels(slot).observe(seconds)

    def show_slot(self, slot: str, *, ready: bool, up: int, down: int) -> None:
        """Publish whether a slot's version can answer, and its thumbs."""
        self.slot_ready.labels(slot).set(ready)
        self.slot_thumbs.labels(slot, "up").set(up)
        self.slot_thumbs.labels(slot, "down").set(down)

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
        self.matrix = self._gauge(
            "accuracy_matrix_ratio",
            "Held-out accuracy of a task after a stage of the stable version; 0000: the base.",
            "stage",
            "trained",
            "task",
        )
        for single in (self.average_accuracy, self.backward_transfer, self.retention):
            single.set(math.nan)  # not 0, which would alert while the base is loaded

    def _build_queue(self) -> None:
        self.queue_up = self._gauge("queue_up", "1 while Redis answers.")
        self.queue_depth = self._gauge("queue_depth", "Jobs that wait for a worker.")
        self.queue_oldest_seconds = self._gauge("queue_oldest_seconds", "Age of the oldest waiting job.")
        self._dead_letters: int | None = None
        self.registry.register(_DeadLetterCollector(lambda: self._dead_letters))
        self.submissions = self._counter("submissions_total", "Submitted jobs by outcome.", "outcome")
        for outcome in ("accepted", "repeated", "invalid"):
            self.submissions.labels(outcome)
        self.feedback = self._counter(
            "feedback_total", "Thumbs and corrections, by the alias of what had answered.", "rating", "alias"
        )
        for rating in ("up", "down"):
            for alias in ("stable", "canary", "other"):
                self.feedback.labels(rating, alias)
        self.feedback_waiting = self._gauge("feedback_waiting", "Corrections that are in no job yet.")
        self.feedback_oldest_seconds = self._gauge(
            "feedback_oldest_seconds", "Age of the oldest correction that should be in a job by now."
        )
        self.feedback_refused = self._counter(
            "feedback_refused_total", "Batches of corrections, and unreadable files, set aside."
        )

    def observe_http(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request under its route template."""
        name = method if method in _METHODS else "other"
        self.http_requests.labels(route, name, str(status)).inc()
        self.http_seconds.labels(route).observe(seconds)

    def show_aliases(self, versions: Mapping[str, str], moved_at: Mapping[str, float] | None = None) -> None:
        """Publish which version every alias names, and when it came to that (seconds since 1970)."""
        self._show(self.alias_info, dict.fromkeys(versions.items(), 1.0))
        numbers = {(alias,): number_of(version) for alias, version in versions.items()}
        self._show(self.alias_version, numbers)
        moves = {(alias, versions[alias]): when for alias, when in (moved_at or {}).items()}
        self._show(self.alias_moved, moves)

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
        for task in accuracy:
            self.routed.labels(task)
        for gauge, values in (
            (self.task_accuracy, accuracy),
            (self.task_forgetting, forgetting),
            (self.routing_leak, leak),
        ):
            self._show(gauge, {(task,): value for task, value in values.items() if not math.isnan(value)})
        for single, value in (
            (self.average_accuracy, average),
            (self.backward_transfer, backward_transfer),
            (self.retention, retention),
        ):
            single.set(math.nan if value is None else value)

    def show_matrix(self, matrix: AccuracyMatrix) -> None:
        """Publish the base's row and the latest ones, within the bounds; missing scores are left out."""
        fitting = MATRIX_CELLS // max(len(matrix.tasks), 1) - 1
        first = max(len(matrix.rows) - max(min(MATRIX_STAGES, fitting), 1), 0)
        rows = [(0, BASE_VERSION, matrix.base)]
        latest = zip(matrix.trained[first:], matrix.rows[first:], strict=True)
        rows += [(stage, trained, row) for stage, (trained, row) in enumerate(latest, start=first + 1)]
        cells = {
            (f"{stage:04d}", trained, task): score
            for stage, trained, row in rows
            for task, score in zip(matrix.tasks, row, strict=True)
            if score is not None
        }
        self._show(self.matrix, cells)

    def show_queue(self, depth: int | None, oldest_seconds: float | None) -> None:
        """Publish the queue's state; ``depth`` None says that Redis is gone."""
        self.queue_up.set(0 if depth is None else 1)
        self.queue_depth.set(math.nan if depth is None else depth)
        self.queue_oldest_seconds.set(math.nan if depth is None else (oldest_seconds or 0.0))

    def show_feedback(self, *, waiting: int, oldest_seconds: float, refused: int) -> None:
        """Publish what waits of the corrections; ``refused`` is what was set aside since the last call."""
        self.feedback_waiting.set(waiting)
        self.feedback_oldest_seconds.set(oldest_seconds)
        self.feedback_refused.inc(refused)

    def show_dead_letters(self, count: int) -> None:
        """Publish how many entries of the queue were given up; the last count stands while Redis is gone."""
        self._dead_letters = count

    def watch_engine(self, read: Callable[[], Any]) -> None:
        """Add the engine's own counters, read at every scrape, and vLLM's series if it runs."""
        self.registry.register(_EngineCollector(read))
        self.registry.register(_VllmCollector())

    def render(self) -> bytes:
        """Return the text exposition."""
        return generate_latest(self.registry)

    def _show(self, gauge: Gauge, values: Mapping[tuple[str, ...], float]) -> None:
        """Set what there is, then remove what is gone: a scrape in between never finds an empty gauge."""
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
        for labels in self._shown.get(gauge, set()) - values.keys():
            gauge.remove(*labels)
        self._shown[gauge] = set(values)


def number_of(version: str) -> int:
    """Return the number of a version id, 0 for the base."""
    return 0 if version == BASE_VERSION else int(version.removeprefix("v"))


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


class _DeadLetterCollector(Collector):
    """Show what Redis counts: workers that are killed by a job lose their own counters."""

    def __init__(self, read: Callable[[], int | None]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the counter; without a value until Redis told it, lest a 0 make it look like an increase."""
        text = "Entries of the queue that were given up."
        yield CounterMetricFamily("strata_dead_letters", text, value=self._read())


class _VllmCollector(Collector):
    """Pass on what vLLM counts: it registers its series in prometheus-client's common registry."""

    def collect(self) -> Iterator[Metric]:
        """Yield vLLM's families; none with another engine."""
        return (family for family in REGISTRY.collect() if family.name.startswith("vllm:"))
