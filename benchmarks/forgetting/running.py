"""Run one method over one stream with one seed, and keep what was measured."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.matrix import AccuracyMatrix
from adapter_store.state import AdapterState
from adapter_store.versions import Manifest
from benchmarks.forgetting import plain
from benchmarks.forgetting.methods import Method
from benchmarks.forgetting.scoring import Scorer
from benchmarks.forgetting.site import Site
from benchmarks.forgetting.streams import StreamTask
from trainer_worker.evaluate import Served
from trainer_worker.workshop import Workshop

Told = Callable[[str], None]


@dataclass(slots=True)
class Measured:
    """What one run of one method left behind; ``rows[i]`` are the scores of all tasks after stage i.

    ``stages`` names the task of each stage; ``machine`` is what it ran on.
    ``validation`` are the scores on pictures that the worker kept back: settings may be chosen by them.
    """

    method: str
    seed: int
    stages: tuple[str, ...]
    base: dict[str, float]
    machine: str
    base_digest: str
    rows: list[dict[str, float]] = field(default_factory=list)
    validation: dict[str, float | None] = field(default_factory=dict)
    leak: dict[str, float] = field(default_factory=dict)
    retention: float | None = None
    trained_parameters: int = 0
    train_seconds: float = 0.0
    served_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    held_back: list[str] = field(default_factory=list)

    def matrix(self) -> AccuracyMatrix:
        """Return the scores as the matrix that all measures are computed from."""
        matrix = AccuracyMatrix.empty()
        for task, row in zip(self.stages, self.rows, strict=False):
            matrix = matrix.with_stage(task, row, self.base)
        return matrix

    def to_dict(self) -> dict[str, Any]:
        """Return everything, with the measures, as JSON-ready values."""
        measures = self.matrix().summary() if self.rows else {"average_accuracy": self.base_mean()}
        return {**asdict(self), "measures": measures}

    def base_mean(self) -> float:
        """Return the untouched base's mean accuracy."""
        return sum(self.base.values()) / len(self.base)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run needs besides its method: ``told`` hears the name of each task as it begins."""

    site: Site
    tasks: Sequence[StreamTask]
    scorer: Callable[[Workshop], Scorer]
    hyperparameters: Mapping[str, Any]
    seed: int
    told: Told


def run(plan: Plan, method: Method, lineage: str) -> Measured:
    """Learn the stream with one method and measure every task after every stage."""
    shop = plan.site.shop(lineage, method.settings)
    one = _Run(plan, method, shop, plan.scorer(shop), lineage)
    reset_peak()
    device = shop.replicas.language.device
    {
        "strata": one.strata,
        "base": one.base,
        "sequential": one.sequential,
        "oracle": one.oracle,
        "joint": one.joint,
    }[method.kind]()
    one.measured.peak_bytes = peak_bytes(device)
    return one.measured


class _Run:
    def __init__(self, plan: Plan, method: Method, shop: Workshop, scorer: Scorer, lineage: str) -> None:
        self.plan, self.method, self.shop, self.scorer, self.lineage = plan, method, shop, scorer, lineage
        self.given = {**plan.hyperparameters, **method.hyperparameters, "seed": plan.seed}
        self.settings = Hyperparameters.of_job(shop.defaults, self.given)
        self.rows = self.settings.rows_per_task
        names = tuple(task.name for task in plan.tasks)
        self.splits: dict[str, str | None] = {}
        self.measured = Measured(
            method.name,
            plan.seed,
            names,
            scorer.base(),
            machine_of(shop.replicas.language.device),
            shop.base.digest,
        )

    def strata(self) -> None:
        """Send every task as a job through queue, worker and gate."""
        line = self.plan.site.lineage(self.shop, self.lineage)
        for task in self.plan.tasks:
            self.plan.told(task.name)
            began = time.monotonic()
            manifest = line.teach(task.teaches, task.train, self.given)
            self.measured.served_seconds.append(time.monotonic() - began)
            self.measured.train_seconds += manifest.seconds.get("train", 0.0)
            self._note(task.teaches, manifest)

    def _note(self, task: str, manifest: Manifest) -> None:
        measured, shop = self.measured, self.shop
        state = AdapterState.load(shop.versions.fetch(manifest.version), base_digest=shop.base.digest)
        measured.rows.append(self.scorer.score(Served.of(state, shop.replicas.increments)))
        measured.leak = self.scorer.leak(state)
        measured.retention = manifest.zero_shot_retention
        measured.trained_parameters = parameters(state, state.rows)
        last = len(manifest.accuracy.rows) - 1
        measured.validation = {name: manifest.accuracy.score(last, name) for name in manifest.accuracy.tasks}
        if manifest.gate is not None and not manifest.gate.passed:
            measured.held_back += [f"{task}: {reason}" for reason in manifest.gate.reasons]

    def base(self) -> None:
        """Learn nothing."""
        self.measured.retention = 1.0

    def sequential(self) -> None:
        """Train one LoRA on task after task."""
        state = self._untrained(self.rows * len({task.teaches for task in self.plan.tasks}))
        earlier: list[plain.Part] = []
        taught: set[str] = set()
        for task in self.plan.tasks:
            self.plan.told(task.name)
            part = self._part(task)
            again = [(data, _some(examples, self.method.replayed_share)) for data, examples in earlier]
            parts = [part, *(old for old in again if old[1])]
            state = self._train(state, parts, again=task.teaches in taught)
            earlier.append(part)
            taught.add(task.teaches)
            self.measured.rows.append(self.scorer.score(self._served(state)))
        self._measure_retention(state)

    def joint(self) -> None:
        """Train one LoRA on all tasks at once; its matrix has the same scores in every row."""
        self.plan.told("all tasks at once")
        state = self._untrained(self.rows * len({task.teaches for task in self.plan.tasks}))
        state = self._train(state, [self._part(task) for task in self.plan.tasks])
        scores = self.scorer.score(self._served(state))
        self.measured.rows = [scores for _ in self.plan.tasks]
        self._measure_retention(state)

    def oracle(self) -> None:
        """Train a LoRA of its own for each task, and score it on that task only."""
        scores = dict(self.measured.base)
        for task in self.plan.tasks:
            self.plan.told(task.name)
            state = self._train(self._untrained(self.rows), [self._part(task)])
            scores = {**scores, task.name: self.scorer.score_task(self._served(state), task.name)}
            self.measured.rows.append(scores)

    def _untrained(self, rows: int) -> AdapterState:
        state = plain.untrained(self.shop, rows, self.plan.seed)
        self.measured.trained_parameters += parameters(state, rows)
        return state

    def _part(self, task: StreamTask) -> plain.Part:
        """Return what a baseline learns of a task: exactly what Strata learns."""
        split = self.shop.held_out.split(task.teaches, task.train, self.splits.get(task.teaches))
        self.splits[task.teaches] = split.dataset_id
        return task.train, split.train

    def _train(
        self, state: AdapterState, parts: Sequence[plain.Part], *, again: bool = False
    ) -> AdapterState:
        state, seconds = plain.train(self.shop, state, parts, self.settings, again=again)
        self.measured.train_seconds += seconds
        return state

    def _served(self, state: AdapterState) -> Served:
        return plain.AlwaysOn.of(state, self.shop.replicas.increments)

    def _measure_retention(self, state: AdapterState) -> None:
        self.measured.retention = self.shop.retention.measure(
            self.shop.replicas,
            self._served(state),
            self.shop.featurizer,
            budget_bytes=self.shop.prefix_cache_bytes,
        )


def _some(examples: Sequence[Any], share: float) -> list[Any]:
    """Return an evenly spread share of the examples, at least one if any is wanted."""
    return list(examples[:: max(1, round(1 / share))]) if share else []


def parameters(state: AdapterState, rows: int) -> int:
    """Return how many numbers ``rows`` increments of a state hold."""
    return sum(layers * rows * state.rank * (d_in + d_out) for layers, d_in, d_out in state.shapes.values())


def machine_of(device: torch.device) -> str:
    """Return what a run computes on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{len(os.sched_getaffinity(0))} cores of {platform.machine()}"


def reset_peak() -> None:
    """Forget the largest memory so far, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes(device: torch.device) -> int:
    """Return the largest memory since ``reset_peak``: the GPU's if one computes, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0
