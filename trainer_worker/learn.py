"""Learn one task's increments: the training loop.

Gradients reach the increments of one task and its contextual logits, nothing else; the base is frozen and
earlier tasks' increments only contribute. What leaves this loop is theta*, the EMA-balanced copy (eq. 7).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter_store.increments import Bank, Increments, Term, gate_of
from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.routing import contextual, intrinsic
from adapter_store.state import AdapterState
from trainer_worker.ema import AlphaStatistics, BalancedEma
from trainer_worker.evaluate import Score, alike_rows, forward, score_samples
from trainer_worker.features import Encoded
from trainer_worker.language import LanguageModel, PrefixStore
from trainer_worker.optimizer import LayerwiseAdamW
from trainer_worker.samples import Batch, Row, batches_of, build_batch, pack_rows
from trainer_worker.survey import Look, survey

LEAST_IMPROVEMENT = 0.02
"""A validation loss that falls by less than this share counts as a plateau."""
DECAY_SHARE = 0.35
"""Part of the run in which the rate falls to 0: live tensors come to rest and theta* catches up."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What to learn from: an encoded set, its prefixes, and which samples train or validate (by index)."""

    encoded: Encoded
    store: PrefixStore
    train: tuple[int, ...]
    validation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """Numbers of one optimizer step, for progress reports."""

    step: int
    total: int
    loss: float
    learning_rate: float
    samples_per_second: float
    eta_seconds: float
    validation: float | None
    alphas: Mapping[str, list[float]]


@dataclass(frozen=True, slots=True)
class Learned:
    """The state with theta* in the trained rows, and how training went."""

    state: AdapterState
    live: AdapterState
    steps: int
    samples: int
    seconds: float
    loss: float
    validation: float | None
    statistics: Mapping[str, AlphaStatistics]
    lag: Mapping[str, float]
    history: tuple[tuple[int, float, float], ...] = field(default=())


class Pupil:
    """The trainable part of a state: rows of one task (live tensors) and how they act beside the others.

    ``live`` holds the bank's ``down.<target>`` and ``up.<target>``, stacked over layers, and, from the second
    task on, ``context`` ``[1, t]``, the task's logits towards earlier ones.
    """

    def __init__(
        self, state: AdapterState, task: str, queries: Tensor, increments: Increments, device: torch.device
    ) -> None:
        self.state = state
        self._task = task
        self._increments = increments
        self._index = state.task_index(task)
        self._rows = state.rows_of(task)
        bank = Bank.from_state(state, self._rows, device=device, trainable=True)
        self.live: dict[str, Tensor] = bank.named_tensors()
        if self._index > 0:
            logits = state.context[self._index : self._index + 1, : self._index]
            self.live["context"] = logits.to(device, copy=True).requires_grad_()
        self.intrinsic = intrinsic(state, queries, only_task=task).to(device)
        self._own = self.intrinsic[:, self._rows.to(device)]
        self._earlier = (state.usage[: self._index].sum(dim=0) > 0).nonzero().flatten()
        self._frozen = Bank.from_state(state, self._earlier, device=device) if len(self._earlier) else None

    def tensors(self) -> dict[str, Tensor]:
        """Return the live tensors, detached."""
        return {name: tensor.detach() for name, tensor in self.live.items()}

    def activate(
        self, batch: Batch, tensors: Mapping[str, Tensor] | None = None
    ) -> AbstractContextManager[object]:
        """Switch increments on for a batch, with selection masked to the task (eq. 2)."""
        held = self.live if tensors is None else tensors
        owner = batch.owner.to(self._own.device)
        terms = [Term(self._bank(held), gate_of(self._own[owner], self.state.rank))]
        if self._frozen is not None:
            k = self._contextual(held["context"])[:, self._earlier.to(owner.device)]
            terms.append(Term(self._frozen, gate_of(k[owner], self.state.rank)))
        return self._increments.active(terms)

    def state_with(self, tensors: Mapping[str, Tensor]) -> AdapterState:
        """Return the state with other values in the trained rows; everything else is byte-identical."""
        down, up = self._bank(tensors).state_layout()
        state = self.state.with_rows(self._rows, down=down, up=up)
        return state.with_context(self._task, tensors["context"][0].cpu()) if "context" in tensors else state

    def _bank(self, tensors: Mapping[str, Tensor]) -> Bank:
        down = {target: tensors[f"down.{target}"] for target in self.state.targets}
        up = {target: tensors[f"up.{target}"] for target in self.state.targets}
        return Bank(down, up, rows=len(self._rows))

    def _contextual(self, logits: Tensor) -> Tensor:
        """Return k ``[B, N]`` of all samples (eq. 4), differentiable in the task's own logits ``[1, t]``."""
        t = self._index
        context = self.state.context.to(logits.device)
        row = torch.cat([logits, context[t : t + 1, t:]], dim=1)
        whole = torch.cat([context[:t], row, context[t + 1 :]])
        return contextual(self.state, self.intrinsic, context=whole)


def learn(
    language: LanguageModel,
    increments: Increments,
    state: AdapterState,
    task: str,
    lesson: Lesson,
    settings: Hyperparameters,
    *,
    report: Callable[[Step], None] = lambda _step: None,
    check: Callable[[], None] = lambda: None,
) -> Learned:
    """Train the rows of ``task`` on a lesson and return the state with theta* in them.

    Args:
        language: the frozen language model.
        increments: how increments act on it.
        state: holds the task already (expanded, keys aligned, or being retrained).
        task: whose rows and contextual logits learn.
        lesson: training and validation samples; validation only decides when to stop.
        settings: learning rate, budget, EMA mode.
        report: called after every step.
        check: called before every step; may raise to interrupt (nothing is lost but the steps).
    """
    _assert_frozen(language)
    looks = _survey(language, increments, state, lesson, settings)
    state = _aimed(state, task, looks, settings) if settings.aimed else state
    pupil = Pupil(state, task, lesson.encoded.queries, increments, language.device)
    optimizer = _optimizer(pupil, looks, settings)
    ema = BalancedEma(pupil.live, pupil.tensors(), mode=settings.ema_mode)
    course = _Course(settings, rows_per_epoch(lesson, pupil, settings))
    whole = state.span == "all"
    history: list[tuple[int, float, float]] = []
    loss_value, samples = 0.0, 0
    best: float | None = None
    for group in _endless(lesson, pupil, settings):
        if course.done():
            break
        check()
        batch = build_batch(lesson.encoded.samples, lesson.encoded.prefixes, group, cached=not whole)
        rate = course.rate()
        logits = forward(language, batch, lesson.store, pupil.activate)
        loss = F.cross_entropy(logits.float(), batch.target.to(logits.device))
        optimizer.zero_grad()
        loss.backward()
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(list(pupil.live.values()), settings.clip_norm)
        optimizer.step(rate)
        alphas = {kind: alpha.tolist() for kind, alpha in ema.update().items()}
        loss_value = float(loss.detach())
        samples += batch.samples
        course.step(batch.samples)
        validation = None
        if course.time_to_validate() and lesson.validation:
            scored = _validate(language, lesson, pupil, ema.served, check)
            validation = scored.accuracy or 0.0
            best = course.note(validation, scored.loss)
            history.append((course.steps, loss_value, validation))
        report(course.describe(loss_value, rate * settings.peak_rate, validation, alphas))
    return Learned(
        state=pupil.state_with(ema.served),
        live=pupil.state_with(pupil.tensors()),
        steps=course.steps,
        samples=samples,
        seconds=course.seconds(),
        loss=loss_value,
        validation=best,
        statistics=ema.statistics,
        lag=ema.lag_ratio(),
        history=tuple(history),
    )


class _Course:
    """Plan a run: how long, how fast (warm-up, constant, decay), and when to stop early.

    A plateau of the validation score starts the decay at once instead of ending the run abruptly.
    """

    def __init__(self, settings: Hyperparameters, steps_per_epoch: int) -> None:
        self._settings = settings
        planned = max(1, math.ceil(settings.epochs * steps_per_epoch))
        self.total = min(planned, settings.max_steps) if settings.max_steps else planned
        self._warmup = max(1, round(settings.warmup_ratio * self.total))
        self._validate_every = max(4, steps_per_epoch)
        self._began = time.monotonic()
        self._decay_from: float | None = None
        self._decay_until: float | None = None
        self._best = -1.0
        self._best_loss = math.inf
        self._stale = 0
        self._samples = 0
        self.steps = 0

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def progress(self) -> float:
        """Return the used share of the budget, by steps or by time, whichever is further."""
        by_steps = self.steps / self.total
        limit = self._settings.max_seconds
        return max(by_steps, self.seconds() / limit) if limit and self.steps else by_steps

    def done(self) -> bool:
        return self.progress() >= (self._decay_until or 1.0)

    def rate(self) -> float:
        """Return the factor on the peak rate: linear up, constant, linear down to almost 0."""
        up = min(1.0, (self.steps + 1) / self._warmup)
        start, end = self._decay_from or 1.0 - DECAY_SHARE, self._decay_until or 1.0
        down = (end - self.progress()) / max(end - start, 1e-9)
        return max(0.0, min(up, down, 1.0)) + 1e-4

    def step(self, samples: int) -> None:
        self.steps += 1
        self._samples += samples

    def time_to_validate(self) -> bool:
        return self.steps % self._validate_every == 0

    def note(self, accuracy: float, loss: float) -> float:
        """Take in a validation score; decay once neither value improves. Return the best accuracy."""
        improved = accuracy > self._best + 1e-9 or loss < self._best_loss * (1 - LEAST_IMPROVEMENT)
        self._stale = 0 if improved else self._stale + 1
        self._best = max(self._best, accuracy)
        self._best_loss = min(self._best_loss, loss)
        plateau = self._settings.patience and self._stale >= self._settings.patience
        reached = accuracy >= self._settings.target_accuracy
        if self._decay_from is None and (plateau or reached) and self.progress() < 1.0 - DECAY_SHARE:
            self._decay_from = self.progress()
            self._decay_until = min(1.0, self._decay_from * (1 + DECAY_SHARE / (1 - DECAY_SHARE)))
        return self._best

    def describe(
        self, loss: float, rate: float, validation: float | None, alphas: Mapping[str, list[float]]
    ) -> Step:
        elapsed = self.seconds()
        used = self.progress() / (self._decay_until or 1.0)
        total = max(self.steps, round(self.steps / used)) if used > 0 else self.total
        eta = elapsed * max(0.0, 1 / used - 1) if used > 0 else 0.0
        speed = self._samples / max(elapsed, 1e-9)
        return Step(self.steps, total, loss, rate, speed, eta, validation, alphas)


def split_validation(
    groups: Sequence[str] | Sequence[int], settings: Hyperparameters, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Divide sample indices into training and validation by group (picture): ``groups[i]`` is sample i's.

    Only carved out when enough pictures remain to learn from (at least 20).
    """
    distinct = sorted(set(groups))
    wanted = min(settings.validation_cap, round(settings.validation_ratio * len(distinct)))
    if len(distinct) < 20 or wanted < 1:
        return tuple(range(len(groups))), ()
    chosen = set(random.Random(seed).sample(distinct, wanted))
    train = tuple(i for i, group in enumerate(groups) if group not in chosen)
    return train, tuple(i for i, group in enumerate(groups) if group in chosen)


def rows_per_epoch(lesson: Lesson, pupil: Pupil, settings: Hyperparameters) -> int:
    """Return the number of optimizer steps of one pass over the training samples."""
    return sum(1 for _ in _epoch(lesson, pupil, settings, random.Random(0)))


def _epoch(
    lesson: Lesson, pupil: Pupil, settings: Hyperparameters, rng: random.Random
) -> Iterator[list[Row]]:
    order = list(lesson.train)
    rng.shuffle(order)
    alike = alike_rows(pupil.intrinsic) if pupil.state.span == "all" else None
    rows = pack_rows(lesson.encoded.samples, order, pack=settings.pack, alike=alike)
    return batches_of(rows, lesson.store.lengths(), batch_size=settings.batch_size, rng=rng)


def _endless(lesson: Lesson, pupil: Pupil, settings: Hyperparameters) -> Iterator[list[Row]]:
    rng = random.Random(settings.seed)
    while True:
        yield from _epoch(lesson, pupil, settings, rng)


def _validate(
    language: LanguageModel,
    lesson: Lesson,
    pupil: Pupil,
    tensors: Mapping[str, Tensor],
    check: Callable[[], None],
) -> Score:
    whole = pupil.state.span == "all"
    return score_samples(
        language,
        lesson.encoded.samples,
        lesson.store,
        lesson.validation,
        lambda batch: pupil.activate(batch, tensors),
        cached=not whole,
        alike=alike_rows(pupil.intrinsic) if whole else None,
        check=check,
    )


def _survey(
    language: LanguageModel,
    increments: Increments,
    state: AdapterState,
    lesson: Lesson,
    settings: Hyperparameters,
) -> dict[str, Look]:
    """Survey the base on at most ``survey_samples`` of the training samples."""
    order = list(lesson.train)
    random.Random(settings.seed).shuffle(order)
    rows = pack_rows(lesson.encoded.samples, order[: settings.survey_samples], pack=1, alike=None)
    groups = batches_of(rows, lesson.store.lengths(), batch_size=settings.batch_size, rng=None)

    def run(group: Sequence[Row]) -> tuple[Tensor, Tensor]:
        cached = state.span != "all"
        batch = build_batch(lesson.encoded.samples, lesson.encoded.prefixes, group, cached=cached)
        logits = forward(language, batch, lesson.store, lambda _batch: nullcontext())
        loss = F.cross_entropy(logits.float(), batch.target.to(logits.device), reduction="sum")
        first = torch.cat([torch.ones(1, dtype=torch.bool), batch.answer_of.diff() != 0])
        return loss, batch.pick[first]

    layers = list(language.backbone.layers)[increments.first_layer :]  # type: ignore[arg-type]
    return survey(layers, state.targets, [partial(run, group) for group in groups])


def _aimed(
    state: AdapterState, task: str, looks: Mapping[str, Look], settings: Hyperparameters
) -> AdapterState:
    """Let new rows (up projections zero) look where the survey found the answers; old rows stay."""
    rows = state.rows_of(task)
    if any(bool(state.up[target][:, rows].any()) for target in state.targets):
        return state
    generator = torch.Generator().manual_seed(settings.seed + 1)
    down = {target: looks[target].down(len(rows), state.rank, generator) for target in state.targets}
    return state.with_rows(rows, down=down)


def _optimizer(pupil: Pupil, looks: Mapping[str, Look], settings: Hyperparameters) -> LayerwiseAdamW:
    """Give every layer a rate relative to the size of what its linear acts on."""
    rates: dict[str, Tensor | float] = {"context": settings.context_learning_rate}
    for target in pupil.state.targets:
        down, look = pupil.live[f"down.{target}"].detach(), looks[target]
        size = look.input_size(down)
        rates[f"up.{target}"] = settings.peak_rate * look.effect.to(size) / size
        own_size = down.flatten(1).pow(2).mean(dim=1).sqrt()
        rates[f"down.{target}"] = settings.peak_rate * settings.down_rate_ratio * own_size
    return LayerwiseAdamW(pupil.live, rates, betas=(0.9, settings.beta2), weight_decay=settings.weight_decay)


def _assert_frozen(language: LanguageModel) -> None:
    for part in (language.backbone, language.head):
        assert not any(parameter.requires_grad for parameter in part.parameters()), "the base must be frozen"
