"""Tell people how far a job is: phases, loss about once a second, and when it will be done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from adapter_store.texts import counted
from trainer_worker.metrics import PHASES, WorkerMetrics

METRICS_EVERY_SECONDS = 1.0


class Interrupted(Exception):
    """Leave a job between two steps: cancelled, lease lost, or the worker is asked to stop."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Reporter(Protocol):
    """Where progress goes: the claim of a job, or a terminal."""

    def event(self, message: str, *, level: Any = ..., type: Any = ..., data: Any = ...) -> Any:  # noqa: A002
        """Append one event."""
        ...

    def update(self, **fields: Any) -> Any:
        """Change fields of the job's record."""
        ...


class Progress:
    """Time phases, throttle metrics, estimate the finish."""

    def __init__(self, reporter: Reporter, metrics: WorkerMetrics, *, clock: Any = time.monotonic) -> None:
        self._reporter = reporter
        self._metrics = metrics
        self._clock = clock
        self._reported = self._prepared = float("-inf")
        self._after_training = 0.0
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase, run it, record its seconds."""
        self._reporter.update(phase=name)
        self._reporter.event(
            name, type="phase", data={"phase": name, "number": PHASES.index(name) + 1, "phases": len(PHASES)}
        )
        began = self._clock()
        yield
        self.seconds[name] = round(self._clock() - began, 3)
        self._metrics.phase_seconds.labels(name).observe(self.seconds[name])
        self._reporter.update(seconds=dict(self.seconds))

    def message(self, text: str, *, level: str = "info", data: Mapping[str, Any] | None = None) -> None:
        """Append a message for people."""
        self._reporter.event(text, level=level, data=dict(data or {}))

    def expect_after_training(self, seconds: float) -> None:
        """Set how long evaluation and publishing will probably take; part of every estimate."""
        self._after_training = seconds

    def preparing(self, done: int, total: int) -> None:
        """Report how many samples are ready for training; at most one event a second goes out."""
        now = self._clock()
        if now - self._prepared < METRICS_EVERY_SECONDS:
            return
        self._prepared = now
        data = {"prepared": done, "to_prepare": total}
        self._reporter.event(f"{done:,} of {counted(total, 'example')} prepared", data=data)

    def training(self, step: int, total: int, values: Mapping[str, float], *, eta_seconds: float) -> None:
        """Report one training step; at most one event a second goes out, besides the last step's."""
        self._metrics.loss.set(values["loss"])
        if "samples_per_second" in values:
            self._metrics.rate.set(values["samples_per_second"])
        now = self._clock()
        if now - self._reported < METRICS_EVERY_SECONDS and step < total:
            return
        self._reported = now
        eta = eta_seconds + self._after_training
        data: dict[str, Any] = {"step": step, "total_steps": total, "eta_seconds": round(eta, 1)}
        data |= {name: round(float(value), 5) for name, value in values.items()}
        finish = round(time.time() + eta, 1)
        data["estimated_finish"] = finish
        self._reporter.event(f"step {step}/{total}: loss {values['loss']:.4f}", type="metrics", data=data)
        self._reporter.update(estimated_finish=finish)
