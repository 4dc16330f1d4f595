"""One job from data set to version: validate, encode, decide, keys, train, evaluate, gate, publish.

Nothing outside the job's own held-out folder changes before ``publish``; so a job that is interrupted
anywhere is simply run again, and a job that was published already only gets its last steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from adapter_store.datasets import Dataset
from adapter_store.errors import InputError
from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.jobs.record import JobStatus
from adapter_store.matrix import AccuracyMatrix
from adapter_store.names import BASE_VERSION
from adapter_store.state import AdapterState
from adapter_store.texts import counted
from adapter_store.versions import STABLE, Gate, Manifest, ManifestDraft, comparable_since
from trainer_worker.correcting import correcting_settings
from trainer_worker.course import Step
from trainer_worker.decide import Verdict, decide
from trainer_worker.evaluate import warm
from trainer_worker.features import Encoded
from trainer_worker.gate import check as gate_check
from trainer_worker.heldout import Split, picture_key
from trainer_worker.hold import Hold
from trainer_worker.importing import lora_of, take_over, take_over_note
from trainer_worker.learn import Learned, Lesson, learn, split_validation
from trainer_worker.measuring import Findings, HeldOutSet, OwnQuestions, Parent, encode_held_out, measure
from trainer_worker.memory import available_bytes
from trainer_worker.placing import Placed, place
from trainer_worker.prefixes import PrefixStore
from trainer_worker.progress import Progress
from trainer_worker.publish import promote, publish
from trainer_worker.workshop import Workshop

PICTURES_SHARE = 0.5
"""Most of the free memory that a batch's encoded pictures may take; learning needs the rest."""
MEASURING_COST = 1.6
"""Evaluation of a held-out picture beside reading its prefix, in seconds; for estimates only."""


def run_job(shop: Workshop, hold: Hold) -> str:
    """Run or resume one claimed job to its end; return the version it resulted in.

    Args:
        shop: the process's parts.
        hold: the job; asked between steps whether to go on (cancelled, lease lost, shutdown).

    Raises:
        StrataError: the job cannot succeed; the caller records why.
    """
    progress = Progress(hold, shop.metrics)
    shop.versions.raise_fence(hold.fence)
    manifest = shop.versions.of_job(hold.job.id)
    if manifest is None:
        hold.check()
        manifest = _Run(shop, hold, progress).to_version()
    else:
        progress.message(f"taken up again: {manifest.version} is published already")
    promotion = promote(shop.versions.aliases, manifest)
    shop.metrics.promotions.labels(promotion.decision).inc()
    level = "info" if promotion.decision == "promoted" else "warn"
    progress.message(promotion.message, level=level, data={"promotion": promotion.decision})
    _finish(hold, manifest, promotion.decision, progress)
    return manifest.version


def _finish(hold: Hold, manifest: Manifest, decision: str, progress: Progress) -> None:
    gate = manifest.gate.model_dump(mode="json") if manifest.gate else {}
    hold.finish(
        JobStatus.SUCCEEDED,
        result_version=manifest.version,
        task=manifest.task,
        decision=manifest.decision,
        gate={**gate, "promotion": decision},
        seconds={**manifest.seconds, **progress.seconds},
    )


class _Run:
    """The phases of one job, in order, with what each leaves for the next."""

    def __init__(self, shop: Workshop, hold: Hold, progress: Progress) -> None:
        self.shop = shop
        self.job = hold.job
        self.hold = hold
        self.progress = progress
        self.check = hold.check

    def to_version(self) -> Manifest:
        """Go through all phases up to the published version."""
        with self.progress.phase("validate"):
            dataset, settings = self._validate()
            parent = self._parent()
            self._tell_ignored(parent.state)
            lora = lora_of(self.shop, self.job, parent.state)
            if lora is not None:
                settings = settings.model_copy(update={"rows_per_task": parent.state.routing.top_m})
        with self.progress.phase("encode"):
            encoded = self._encode(dataset, parent.state)
            known = encode_held_out(self.shop, parent, self.check)
        with self.progress.phase("decide"):
            verdict = self._decide(encoded, parent.state, known)
            earlier = known.get(verdict.task)
            split = self.shop.held_out.split(
                verdict.task,
                dataset,
                earlier.dataset_id if earlier else None,
                learn_all=self.job.corrects,
            )
            train = self._training_samples(encoded, split)
        with self.progress.phase("keys"):
            placed = place(
                self.shop,
                parent.state,
                verdict,
                encoded.queries[torch.tensor(train)],
                settings,
                known=earlier.encoded.queries if earlier else None,
                imported=lora is not None,
                corrects=self.job.corrects,
                say=lambda text, data: self.progress.message(text, data=data),
                check=self.check,
            )
        with self.progress.phase("train"):
            pictures = sum(len(held.encoded.prefixes) for held in known.values()) + split.held_out_pictures
            if lora is not None:
                learned = take_over(self.shop, placed.state, verdict.task, lora)
                level = "warn" if placed.state.span == "after_image" else "info"
                self.progress.message(take_over_note(placed.state, lora), level=level)
            else:
                learned = self._train(placed, verdict.task, encoded, train, settings, to_measure=pictures)
        with self.progress.phase("evaluate"):
            if self.job.corrects:
                own = OwnQuestions.corrections(encoded, dataset.image)
            else:
                own = OwnQuestions.of(encoded, train)
            findings = self._measure(learned.state, parent, verdict, known, split, own, alike=placed.alike)
        with self.progress.phase("gate"):
            gate = self._gate(findings)
        with self.progress.phase("publish"):
            draft = self._draft(parent, verdict, settings, learned, findings, gate)
            return publish(self.shop.versions, learned.state, draft, findings.probe, fence=self.hold.fence)

    def _validate(self) -> tuple[Dataset, Hyperparameters]:
        dataset = self.shop.datasets.open(self.job.dataset.id)
        settings = Hyperparameters.of_job(self.shop.defaults, self.job.hyperparameters)
        if self.job.corrects:
            settings = correcting_settings(settings, self.job.hyperparameters)
        if not any(turn.answer for example in dataset.examples for turn in example.turns):
            raise InputError(f"data set {dataset.ref.id} has no answers to learn from")
        self._assert_fits(dataset)
        return dataset, settings

    def _assert_fits(self, dataset: Dataset) -> None:
        """Refuse pictures that this machine could not hold once they are encoded."""
        one, free = self.shop.featurizer.picture_bytes, available_bytes()
        pictures = dataset.ref.images
        if free is not None and pictures * one > PICTURES_SHARE * free:
            raise InputError(
                f"data set {dataset.ref.id} has {pictures} pictures, which take {_size(pictures * one)} when"
                f" encoded: more than {PICTURES_SHARE:.0%} of the {_size(free)} of memory that the worker has"
                f" left; send batches of at most {int(PICTURES_SHARE * free / one)} pictures"
            )

    def _parent(self) -> Parent:
        record = self.shop.versions.aliases.get(STABLE)
        if record is None or record.version == BASE_VERSION:
            return Parent(BASE_VERSION, self.shop.untaught(), AccuracyMatrix.empty(), {})
        manifest = self.shop.versions.manifest(record.version)
        folder = self.shop.versions.fetch(record.version)
        state = AdapterState.load(folder, base_digest=self.shop.base.digest)
        self.shop.replicas.increments.check_fits(state, record.version)
        return Parent.of(manifest, state)

    def _tell_ignored(self, state: AdapterState) -> None:
        if ignored := self.shop.method.ignored_for(state):
            text = "; ".join(f"{name} stays {value}" for name, value in ignored.items())
            text = f"settings of a lineage hold from its first task on: {text}"
            self.progress.message(text, level="warn", data=ignored)

    def _encode(self, dataset: Dataset, state: AdapterState) -> Encoded:
        encoded = self.shop.featurizer.encode(
            dataset.examples, dataset.image, state.routing, check=self.check
        )
        if encoded.dropped:
            text = f"too long and left out: {counted(encoded.dropped, 'example')}"
            self.progress.message(text, level="warn")
        if not len(encoded):
            raise InputError(f"no example of {dataset.ref.id} fits the model's context; shorten them")
        return encoded

    def _decide(self, encoded: Encoded, state: AdapterState, known: Mapping[str, HeldOutSet]) -> Verdict:
        verdict = decide(
            encoded.queries,
            named=self.job.task,
            tasks=state.tasks,
            centroids=state.centroids,
            centroid_task=state.centroid_task,
            held_out={task: held.encoded.queries for task, held in known.items()},
            fixed_theta=self.shop.method.theta,
            taken=self.shop.held_out.names_in_use(besides=self.job.dataset.id),
        )
        self.progress.message(f"{verdict.decision} {verdict.task}: {verdict.reason}", data=verdict.to_dict())
        self.hold.update(decision=verdict.decision, task=verdict.task)
        return verdict

    def _training_samples(self, encoded: Encoded, split: Split) -> list[int]:
        allowed = {picture_key(example) for example in split.train}
        train = [i for i, example in enumerate(encoded.examples) if picture_key(example) in allowed]
        if not train:
            raise InputError("every picture of this batch is held out for measuring; send at least one other")
        held_out = counted(split.held_out_pictures, "picture")
        text = f"{counted(len(train), 'example')} to learn from, {held_out} held out"
        self.progress.message(text, data={"train": len(train), "held_out": split.held_out_pictures})
        return train

    def _train(
        self,
        placed: Placed,
        task: str,
        encoded: Encoded,
        train: list[int],
        settings: Hyperparameters,
        to_measure: int,
    ) -> Learned:
        store = PrefixStore(encoded.prefixes, encoded.pictures, budget_bytes=self.shop.prefix_cache_bytes)
        if placed.state.span == "after_image":
            began = time.monotonic()
            prefixes = {encoded.samples[i].prefix for i in train}
            warm(
                self.shop.replicas,
                encoded.samples,
                store,
                train,
                check=self.check,
                report=self.progress.preparing,
            )
            per_picture = (time.monotonic() - began) / len(prefixes)
            self.progress.expect_after_training(MEASURING_COST * per_picture * to_measure)
        groups = [picture_key(encoded.examples[i]) for i in train]
        if self.job.corrects:
            inside = validation = tuple(range(len(train)))
        else:
            inside, validation = split_validation(groups, settings, settings.seed)
        lesson = Lesson(encoded, store, tuple(train[i] for i in inside), tuple(train[i] for i in validation))
        learned = learn(
            self.shop.replicas,
            placed.state,
            task,
            lesson,
            settings,
            rows=placed.rows,
            again=False if self.job.corrects else None,
            report=self._report,
            check=self.check,
        )
        for kind, statistics in learned.statistics.items():
            self.shop.metrics.fallback.labels(kind).set(statistics.fallback_ratio)
        self.progress.message(
            f"trained {learned.steps} steps, {learned.samples / max(learned.seconds, 1e-9):.1f} samples/s",
            data={"ema": {kind: s.to_dict() for kind, s in learned.statistics.items()}},
        )
        return learned

    def _report(self, step: Step) -> None:
        values = {
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "samples_per_second": step.samples_per_second,
        }
        if step.validation is not None:
            values["validation_accuracy"] = step.validation
        for kind, alpha in step.alphas.items():
            for value in alpha:
                self.shop.metrics.alpha.labels(kind).observe(value)
        self.progress.training(step.step, step.total, values, eta_seconds=step.eta_seconds)

    def _measure(
        self,
        state: AdapterState,
        parent: Parent,
        verdict: Verdict,
        known: Mapping[str, HeldOutSet],
        split: Split,
        own: OwnQuestions,
        *,
        alike: bool,
    ) -> Findings:
        findings = measure(
            self.shop,
            state,
            parent,
            verdict,
            known,
            split=split.dataset_id,
            own=own,
            alike=alike,
            check=self.check,
        )
        measured = findings.measured
        matrix, since = findings.matrix, comparable_since(findings.splits)
        forgetting = {name: matrix.forgetting_of(name, since) for name in matrix.tasks}
        self.shop.metrics.measured(measured.after, forgetting, measured.leak, measured.retention)
        self.progress.message(
            "measured " + ", ".join(f"{name} {_shown(value)}" for name, value in measured.after.items()),
            data={
                "accuracy": dict(measured.after),
                "before": dict(measured.before),
                "leak": dict(measured.leak),
                "retention": measured.retention,
            },
        )
        return findings

    def _gate(self, findings: Findings) -> Gate:
        gate = gate_check(findings.measured, self.shop.policy)
        text = (
            "the gate passed" if gate.passed else "the gate held the version back: " + "; ".join(gate.reasons)
        )
        unmeasured = [task for task, score in findings.measured.after.items() if score is None]
        if unmeasured:
            text += f"; not measured, as too few pictures were ever sent: {', '.join(unmeasured)}"
        data = {**gate.model_dump(mode="json"), "unmeasured": unmeasured}
        self.progress.message(text, level="info" if gate.passed and not unmeasured else "warn", data=data)
        return gate

    def _draft(
        self,
        parent: Parent,
        verdict: Verdict,
        settings: Hyperparameters,
        learned: Learned,
        findings: Findings,
        gate: Gate,
    ) -> ManifestDraft:
        state = learned.state
        method = {
            "rank": state.rank,
            "span": state.span,
            "targets": list(state.targets),
            "routing": state.routing.mode,
            "top_m": state.routing.top_m,
            "increments": state.rows,
            "tau": state.routing.tau,
            "steps": learned.steps,
            "samples": learned.samples,
            "final_loss": round(learned.loss, 5) if learned.steps else None,
            "ema": {kind: s.to_dict() for kind, s in learned.statistics.items()},
        }
        return ManifestDraft(
            parent=parent.version,
            base_id=self.shop.base.base_id,
            base_digest=self.shop.base.digest,
            job_id=self.job.id,
            dataset_id=self.job.dataset.id,
            task=verdict.task,
            decision=verdict.decision,
            tasks=state.tasks,
            settings={**settings.model_dump(), **method, "imported": self.job.adapter},
            accuracy=findings.matrix,
            splits=dict(findings.splits),
            anchors=dict(findings.anchors),
            compared_since=parent.compared_since,
            routing_leak=dict(findings.measured.leak),
            zero_shot_retention=findings.measured.retention,
            gate=gate,
            seconds=dict(self.progress.seconds),
        )


def _size(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
