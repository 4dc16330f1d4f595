"""Measure a candidate on every known task's held-out pictures, beside what was there before.

Pictures are read once per task; base, parent and candidate answer behind the same keys and values.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adapter_store.matrix import AccuracyMatrix
from adapter_store.state import AdapterState
from trainer_worker.decide import Verdict
from trainer_worker.evaluate import Served, greedy_answer, leak_ratio, score_base, score_state
from trainer_worker.features import Encoded
from trainer_worker.gate import Measured
from trainer_worker.language import PrefixStore
from trainer_worker.publish import RecordedProbe, stage_matrix
from trainer_worker.workshop import Workshop

Check = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Parent:
    """The version a job builds on: what ``stable`` was when the job began."""

    version: str
    state: AdapterState
    matrix: AccuracyMatrix


@dataclass(frozen=True, slots=True)
class Findings:
    """What evaluation found: the matrix with the new stage, the gate's input, and the probe to publish."""

    matrix: AccuracyMatrix
    measured: Measured
    probe: RecordedProbe | None


def encode_held_out(shop: Workshop, state: AdapterState, check: Check) -> dict[str, Encoded]:
    """Encode the held-out sets of the tasks that ``state`` knows."""
    known: dict[str, Encoded] = {}
    for task in state.tasks:
        encoded = _encode_task(shop, state, task, check)
        if encoded is not None:
            known[task] = encoded
    return known


def measure(
    shop: Workshop,
    state: AdapterState,
    parent: Parent,
    verdict: Verdict,
    known: Mapping[str, Encoded],
    *,
    grown: bool,
    check: Check,
) -> Findings:
    """Score all known tasks, the base on a new one, the routing leak and the zero-shot retention.

    Args:
        shop: the process's parts.
        state: the candidate.
        parent: what it was made from.
        verdict: which task was trained, and whether it is new.
        known: encoded held-out sets of the parent's tasks.
        grown: the trained task's held-out set has new pictures: encode it again, and score the parent anew.
        check: may raise to interrupt.
    """
    task = verdict.task
    held_out = dict(known)
    if grown or task not in held_out:
        fresh = _encode_task(shop, state, task, check)
        held_out |= {task: fresh} if fresh is not None else {}
    served = Served.of(state, shop.increments)
    after: dict[str, float | None] = dict.fromkeys(state.tasks)
    before = best_before(parent.matrix)
    base: dict[str, float | None] = {}
    probe = None
    for name, encoded in held_out.items():
        store = _store(shop, encoded)
        store.warm(range(len(encoded.prefixes)), check=check)
        if name not in parent.matrix.tasks:
            base[name] = score_base(shop.language, shop.increments, encoded, store, check=check).accuracy
        if name == task:
            before[name] = base.get(name)
            if verdict.decision == "retrain":
                before[name] = _score_parent(shop, parent, task, encoded, store, grown, check)
            probe = _record_probe(shop, served, task, encoded, store)
        after[name] = score_state(shop.language, served, encoded, store, check=check).accuracy
    leak = {name: leak_ratio(state, encoded.queries, name) for name, encoded in held_out.items()}
    retention = shop.retention.measure(
        shop.language, served, shop.featurizer, budget_bytes=shop.prefix_cache_bytes, check=check
    )
    measured = Measured(task, verdict.decision == "expand", before, after, leak, retention)
    return Findings(stage_matrix(parent.matrix, task, after, base), measured, probe)


def best_before(matrix: AccuracyMatrix) -> dict[str, float | None]:
    """Return each task's best score since it was first trained."""
    best: dict[str, float | None] = {}
    for task in dict.fromkeys(matrix.trained):
        first = matrix.trained.index(task)
        scores = [matrix.score(stage, task) for stage in range(first, len(matrix.rows))]
        best[task] = max((score for score in scores if score is not None), default=None)
    return best


def _encode_task(shop: Workshop, state: AdapterState, task: str, check: Check) -> Encoded | None:
    data = shop.held_out.dataset(task)
    if data is None:
        return None
    return shop.featurizer.encode(data.examples, data.image, state.routing, check=check)


def _store(shop: Workshop, encoded: Encoded) -> PrefixStore:
    return PrefixStore(
        shop.language,
        encoded.prefixes,
        encoded.pictures,
        budget_bytes=shop.prefix_cache_bytes,
        half=False,
    )


def _score_parent(
    shop: Workshop,
    parent: Parent,
    task: str,
    encoded: Encoded,
    store: PrefixStore,
    grown: bool,
    check: Check,
) -> float | None:
    """Return the parent's score on the trained task: as recorded, or anew if the held-out set grew."""
    last = parent.matrix.score(len(parent.matrix.rows) - 1, task) if task in parent.matrix.tasks else None
    if last is not None and not grown:
        return last
    served = Served.of(parent.state, shop.increments)
    return score_state(shop.language, served, encoded, store, check=check).accuracy


def _record_probe(
    shop: Workshop, served: Served, task: str, encoded: Encoded, store: PrefixStore
) -> RecordedProbe:
    """Record the greedy answer to the task's first held-out question."""
    example = encoded.examples[0]
    ids, logprobs = greedy_answer(
        shop.language,
        encoded.samples[0],
        store,
        served.activate(served.coefficients(encoded.queries)),
        cached=served.state.span == "after_image",
        end_ids=shop.end_ids,
    )
    data = shop.held_out.dataset(task)
    png = None
    if data is not None and example.image is not None:
        buffer = io.BytesIO()
        data.image(example.image).save(buffer, format="PNG")
        png = buffer.getvalue()
    return RecordedProbe(example.turns[0].question, png, tuple(ids), tuple(logprobs))
