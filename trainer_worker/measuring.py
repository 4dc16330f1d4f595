"""Measure a candidate on every known task's held-out pictures, beside what was there before.

Pictures are read once per task; base, parent and candidate answer behind the same keys and values.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from adapter_store.matrix import AccuracyMatrix
from adapter_store.state import AdapterState
from adapter_store.versions import Anchor, Manifest, MeasuredOn
from trainer_worker.decide import Verdict
from trainer_worker.evaluate import Score, Served, greedy_answer, leak_ratio, score_base, score_state
from trainer_worker.features import Encoded
from trainer_worker.gate import Corrected, Fresh, Measured
from trainer_worker.prefixes import PrefixStore
from trainer_worker.publish import RecordedProbe, stage_matrix
from trainer_worker.workshop import Workshop

Check = Callable[[], None]
Picture = Callable[[str], Image.Image]


@dataclass(frozen=True, slots=True)
class Parent:
    """The version a job builds on: what ``stable`` was when the job began."""

    version: str
    state: AdapterState
    matrix: AccuracyMatrix
    splits: Mapping[str, MeasuredOn]
    anchors: Mapping[str, Anchor] = field(default_factory=dict)
    compared_since: int = 0

    @classmethod
    def of(cls, manifest: Manifest, state: AdapterState) -> Parent:
        """Describe a version; one that an operator promoted against the gate is the measure from then on."""
        accepted = manifest.gate is not None and not manifest.gate.passed
        anchors = {
            task: _accepted(anchor, manifest, task) if accepted else anchor
            for task, anchor in manifest.anchors.items()
        }
        since = len(manifest.accuracy.rows) - 1 if accepted else manifest.compared_since
        return cls(manifest.version, state, manifest.accuracy, manifest.splits, anchors, since)

    def split_of(self, task: str) -> str | None:
        """Return the held-out data set that the parent's score of a task comes from."""
        split = self.splits.get(task)
        return split.dataset_id if split else None


def _accepted(anchor: Anchor, manifest: Manifest, task: str) -> Anchor:
    """Return an anchor whose best score is the version's own, as far as it was measured on that set."""
    last, split = anchor.last, manifest.splits.get(task)
    if split is not None and split.dataset_id == anchor.dataset_id and task in manifest.accuracy.tasks:
        measured = manifest.accuracy.score(len(manifest.accuracy.rows) - 1, task)
        last = last if measured is None else measured
    return anchor.model_copy(update={"best": last, "last": last})


@dataclass(frozen=True, slots=True)
class HeldOutSet:
    """One task's held-out examples as encoded, and the data set that they are."""

    dataset_id: str
    encoded: Encoded


@dataclass(frozen=True, slots=True)
class OwnQuestions:
    """A batch's own questions that judge it, as it sent them (samples of ``encoded`` by index).

    They are held out, but of a batch of corrections (``learned``): there they are all that it has.
    ``commonest`` is the share of the most frequent answer among those that are learned.
    """

    encoded: Encoded
    order: tuple[int, ...]
    commonest: float
    learned: bool = False
    picture: Picture | None = None

    @property
    def answers(self) -> int:
        """Return how many answers these questions have."""
        return sum(len(self.encoded.examples[i].turns) for i in self.order)

    @classmethod
    def of(cls, encoded: Encoded, train: Sequence[int]) -> OwnQuestions:
        """Divide a batch: what is not in ``train`` is held out."""
        learned = set(train)
        answers = Counter(turn.answer.strip() for i in train for turn in encoded.examples[i].turns)
        commonest = max(answers.values()) / sum(answers.values())
        return cls(encoded, tuple(i for i in range(len(encoded)) if i not in learned), commonest)

    @classmethod
    def corrections(cls, encoded: Encoded, picture: Picture) -> OwnQuestions:
        """Take all of a batch, whose pictures ``picture`` opens by name."""
        return cls(encoded, tuple(range(len(encoded))), 1.0, learned=True, picture=picture)


@dataclass(frozen=True, slots=True)
class Findings:
    """What evaluation found: the matrix with the new stage, the gate's input, and the probe to publish."""

    matrix: AccuracyMatrix
    splits: Mapping[str, MeasuredOn]
    anchors: Mapping[str, Anchor]
    measured: Measured
    probe: RecordedProbe | None


def encode_held_out(shop: Workshop, parent: Parent, check: Check) -> dict[str, HeldOutSet]:
    """Encode the held-out sets that the parent's tasks were measured on."""
    known: dict[str, HeldOutSet] = {}
    for task in parent.state.tasks:
        held = _encode_task(shop, parent.state, task, parent.split_of(task), check)
        if held is not None:
            known[task] = held
    return known


def measure(
    shop: Workshop,
    state: AdapterState,
    parent: Parent,
    verdict: Verdict,
    known: Mapping[str, HeldOutSet],
    *,
    split: str | None,
    own: OwnQuestions,
    alike: bool = False,
    check: Check,
) -> Findings:
    """Score all known tasks, the base on a new one, the routing leak and the zero-shot retention.

    Scores are only compared along one held-out data set: where a task's is not the one that the parent was
    measured on, the parent is scored anew.

    Args:
        shop: the process's parts.
        state: the candidate.
        parent: what it was made from.
        verdict: which task was trained, and whether it is new.
        known: encoded held-out sets of the parent's tasks.
        split: the held-out data set of the trained task after this batch; None if nothing is held out.
        own: the batch's own held-out questions.
        alike: whether the batch lies where a known task was asked before.
        check: may raise to interrupt.
    """
    task = verdict.task
    held_out = dict(known)
    if split is not None and (task not in held_out or held_out[task].dataset_id != split):
        fresh = _encode_task(shop, state, task, split, check)
        held_out |= {task: fresh} if fresh is not None else {}
    served = Served.of(state, shop.replicas.increments)
    after: dict[str, float | None] = dict.fromkeys(state.tasks)
    before = best_before(parent.matrix, parent.splits, parent.compared_since)
    base: dict[str, float | None] = {}
    scored: dict[str, Score] = {}
    probe = None
    for name, held in held_out.items():
        encoded = held.encoded
        store = _store(shop, encoded)
        if name not in parent.matrix.tasks:
            base[name] = score_base(shop.replicas, encoded, store, check=check).accuracy
        if name not in parent.state.tasks:
            before[name] = base.get(name)
        else:
            before[name] = _parent_score(
                shop, parent, name, held, store, before, trained=name == task, check=check
            )
        if name == task:
            data = shop.held_out.dataset(task, held.dataset_id)
            probe = _record_probe(shop, served, encoded, store, data.image if data else None)
        scored[name] = score_state(shop.replicas, served, encoded, store, check=check)
        after[name] = scored[name].accuracy
    leak = {name: leak_ratio(state, held.encoded.queries, name) for name, held in held_out.items()}
    retention = shop.retention.measure(
        shop.replicas, served, shop.featurizer, budget_bytes=shop.prefix_cache_bytes, check=check
    )
    before = {name: score for name, score in before.items() if name in state.tasks}
    anchor = _anchor(shop, served, parent, held_out.get(task), task, after.get(task), check)
    measured = Measured(
        task,
        verdict.decision == "expand",
        before,
        after,
        leak,
        retention,
        kept=(anchor.best, anchor.last) if anchor is not None and task in parent.state.tasks else None,
        fresh=_fresh(shop, served, own, None if task in parent.state.tasks else scored.get(task), check),
        asked={name: score.answers for name, score in scored.items()},
        alike=alike,
        corrected=_corrected(shop, served, parent, own, check) if own.learned else None,
    )
    if probe is None and own.learned:
        probe = _record_probe(shop, served, own.encoded, _store(shop, own.encoded), own.picture)
    splits = next_splits(parent, {name: held.dataset_id for name, held in held_out.items()})
    anchors = dict(parent.anchors)
    if anchor is not None:
        anchors[task] = anchor.model_copy(update={"best": max(anchor.best, anchor.last)})
    return Findings(stage_matrix(parent.matrix, task, after, base), splits, anchors, measured, probe)


def best_before(
    matrix: AccuracyMatrix, splits: Mapping[str, MeasuredOn], since: int = 0
) -> dict[str, float | None]:
    """Return each task's best score since it was first trained, among stages with its present split.

    ``since``: the first stage that counts, the last one that an operator promoted against the gate.
    """
    best: dict[str, float | None] = {}
    for task in dict.fromkeys(matrix.trained):
        first = max(matrix.trained.index(task), since)
        if task in splits:
            first = max(first, splits[task].since)
        scores = [matrix.score(stage, task) for stage in range(first, len(matrix.rows))]
        best[task] = max((score for score in scores if score is not None), default=None)
    return best


def next_splits(parent: Parent, used: Mapping[str, str]) -> dict[str, MeasuredOn]:
    """Return what the new stage's scores were measured on, and since which stage."""
    stage = len(parent.matrix.rows)
    return {
        name: parent.splits[name]
        if parent.split_of(name) == dataset_id
        else MeasuredOn(dataset_id=dataset_id, since=stage)
        for name, dataset_id in used.items()
    }


def _encode_task(
    shop: Workshop, state: AdapterState, task: str, split: str | None, check: Check
) -> HeldOutSet | None:
    data = shop.held_out.dataset(task, split)
    if data is None:
        return None
    encoded = shop.featurizer.encode(data.examples, data.image, state.routing, check=check)
    return HeldOutSet(data.ref.id, encoded) if len(encoded) else None


def _store(shop: Workshop, encoded: Encoded) -> PrefixStore:
    return PrefixStore(encoded.prefixes, encoded.pictures, budget_bytes=shop.prefix_cache_bytes, half=False)


def _parent_score(
    shop: Workshop,
    parent: Parent,
    task: str,
    held: HeldOutSet,
    store: PrefixStore,
    best: Mapping[str, float | None],
    *,
    trained: bool,
    check: Check,
) -> float | None:
    """Return what the candidate is compared with on a known task: recorded, or the parent scored anew.

    The trained task must beat the parent itself; any other one the best stage on the same held-out set.
    """
    if parent.split_of(task) == held.dataset_id and task in parent.matrix.tasks:
        last = parent.matrix.score(len(parent.matrix.rows) - 1, task)
        recorded = last if trained else best.get(task)
        if recorded is not None:
            return recorded
    served = Served.of(parent.state, shop.replicas.increments)
    return score_state(shop.replicas, served, held.encoded, store, check=check).accuracy


def _anchor(
    shop: Workshop,
    served: Served,
    parent: Parent,
    held: HeldOutSet | None,
    task: str,
    after: float | None,
    check: Check,
) -> Anchor | None:
    """Score the trained task on the first set that was ever held out for it; ``best`` is from before.

    However small its steps, a task that is trained again and again cannot drift away from that set.
    """
    if held is None or after is None:
        return parent.anchors.get(task)
    known = parent.anchors.get(task)
    if known is None or known.dataset_id == held.dataset_id:
        return Anchor(dataset_id=held.dataset_id, best=known.best if known else after, last=after)
    first = _encode_task(shop, served.state, task, known.dataset_id, check)
    if first is None or first.dataset_id != known.dataset_id:
        return Anchor(dataset_id=held.dataset_id, best=after, last=after)
    score = score_state(shop.replicas, served, first.encoded, _store(shop, first.encoded), check=check)
    return known.model_copy(update={"last": score.accuracy or 0.0})


def _fresh(
    shop: Workshop, served: Served, own: OwnQuestions, new: Score | None, check: Check
) -> Fresh | None:
    """Return how the batch's own questions are answered; a ``new`` task's score is theirs, unless capped."""
    if not own.order or own.learned:
        return None
    score = new
    if score is None or score.answers != own.answers:  # the measured set is capped
        score = score_state(
            shop.replicas, served, own.encoded, _store(shop, own.encoded), order=own.order, check=check
        )
    return Fresh(score.correct, score.answers, own.commonest)


def _corrected(shop: Workshop, served: Served, parent: Parent, own: OwnQuestions, check: Check) -> Corrected:
    """Return how the corrected questions are answered, beside the parent's answers to them."""
    store, encoded = _store(shop, own.encoded), own.encoded
    if parent.state.rows:
        before = Served.of(parent.state, shop.replicas.increments)
        was = score_state(shop.replicas, before, encoded, store, check=check)
    else:
        was = score_base(shop.replicas, encoded, store, check=check)
    now = score_state(shop.replicas, served, encoded, store, check=check)
    return Corrected(was.correct, now.correct, now.answers)


def _record_probe(
    shop: Workshop, served: Served, encoded: Encoded, store: PrefixStore, picture: Picture | None
) -> RecordedProbe:
    """Record the greedy answer to the first question of a set whose pictures ``picture`` opens by name."""
    example = encoded.examples[0]
    ids, logprobs = greedy_answer(
        shop.replicas.first,
        encoded.samples[0],
        store,
        served.activate(served.coefficients(encoded.queries)),
        cached=served.state.span == "after_image",
        end_ids=shop.end_ids,
    )
    png = None
    if picture is not None and example.image is not None:
        buffer = io.BytesIO()
        picture(example.image).save(buffer, format="PNG")
        png = buffer.getvalue()
    return RecordedProbe(example.turns[0].question, png, tuple(ids), tuple(logprobs))
