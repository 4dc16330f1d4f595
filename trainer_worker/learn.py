"""Learn one task's increments: the training loop.

Gradients reach the increments of one task and its contextual logits, nothing else, unless ``share`` lets the
other increments that a batch uses move with them; the base is frozen, and all else only contributes. What
leaves this loop is theta*, the EMA-balanced copy (eq. 7).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter_store.increments import Bank, Increments, Term, gate_of
from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.routing import contextual, intrinsic
from adapter_store.state import CLOSED_CONTEXT, AdapterState
from trainer_worker.course import Course, Step
from trainer_worker.dropout import Dropout
from trainer_worker.ema import AlphaStatistics, BalancedEma
from trainer_worker.evaluate import Score, alike_rows, base_only, forward, score_samples
from trainer_worker.features import Encoded
from trainer_worker.language import LanguageModel
from trainer_worker.optimizer import LayerwiseAdamW
from trainer_worker.prefixes import PrefixStore
from trainer_worker.replicas import Replica, Replicas
from trainer_worker.samples import Batch, Row, batches_of, build_batch, pack_rows
from trainer_worker.survey import Glimpses, Look, glimpse, survey

RECURRING = 4
CONFIRMED = 256
"""Training samples that theta* is asked, at most, before a run ends early."""
NEGLIGIBLE = 1e-6
"""Mean coefficient under which a batch does not use an increment."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What to learn from: an encoded set, its prefixes, and which samples train or validate (by index)."""

    encoded: Encoded
    store: PrefixStore
    train: tuple[int, ...]
    validation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Learned:
    """The state with theta* in the trained rows, and how training went."""

    state: AdapterState
    steps: int
    samples: int
    seconds: float
    loss: float
    statistics: Mapping[str, AlphaStatistics]


class Pupil:
    """The trainable part of a state: rows of one task (live tensors) and how they act beside the others.

    ``live`` holds the bank's ``down.<target>`` and ``up.<target>``, stacked over layers, and, from the second
    task on and if all of the task's rows learn, ``context`` ``[1, t]``, its logits towards earlier ones,
    unless they are closed (decay would open them).
    ``rows`` names a part of the task's rows that alone learns; None is all. With ``share`` the rows of other
    tasks that the batch uses are live, too, and questions select among all rows as in serving; without it
    selection is masked to what learns (eq. 2).
    """

    def __init__(
        self,
        state: AdapterState,
        task: str,
        queries: Tensor,
        device: torch.device,
        *,
        rows: Tensor | None = None,
        share: bool = False,
    ) -> None:
        self.state = state
        self._task = task
        self._index = state.task_index(task)
        whole = state.rows_of(task)
        rows = whole if rows is None else rows
        a = intrinsic(state, queries, among=None if share else rows)
        k = contextual(state, a)
        self.intrinsic, self._contextual_before = a.to(device), k.to(device)
        own = torch.zeros(state.rows, dtype=torch.bool).index_fill_(0, rows, value=True)
        used = (a + k).mean(dim=0) > NEGLIGIBLE
        trained = own | (used & (state.task_of != self._index)) if share else own
        self.rows = trained.nonzero().flatten()
        self._held = (used & ~trained).nonzero().flatten()
        bank = Bank.from_state(state, self.rows, device=device, trainable=True)
        self.live: dict[str, Tensor] = bank.named_tensors()
        logits = state.context[self._index : self._index + 1, : self._index]
        if len(rows) == len(whole) and bool((logits > CLOSED_CONTEXT).any()):
            self.live["context"] = logits.to(device, copy=True).requires_grad_()
        self._frozen = Bank.from_state(state, self._held, device=device) if len(self._held) else None

    def tensors(self) -> dict[str, Tensor]:
        """Return the live tensors, detached."""
        return {name: tensor.detach() for name, tensor in self.live.items()}

    def activate(
        self,
        increments: Increments,
        batch: Batch,
        tensors: Mapping[str, Tensor] | None = None,
        keep: Tensor | None = None,
    ) -> AbstractContextManager[object]:
        """Switch increments on for a batch, with the coefficients of eq. 5.

        ``keep`` ``[B, R]`` scales the R live rank components in each row (dropout).
        """
        held = self.live if tensors is None else tensors
        c = self.intrinsic + (
            self._contextual(held["context"]) if "context" in held else self._contextual_before
        )
        owner = batch.owner.to(c.device)
        gate = gate_of(c[:, self.rows.to(c.device)][owner], self.state.rank)
        if keep is not None:
            gate = gate * keep[:, None].to(gate)
        terms = [Term(self._bank(held), gate)]
        if self._frozen is not None:
            frozen = c[:, self._held.to(c.device)]
            terms.append(Term(self._frozen, gate_of(frozen[owner], self.state.rank)))
        return increments.active(terms)

    def state_with(self, tensors: Mapping[str, Tensor]) -> AdapterState:
        """Return the state with other values in the trained rows; everything else is byte-identical."""
        down, up = self._bank(tensors).state_layout()
        state = self.state.with_rows(self.rows, down=down, up=up)
        return state.with_context(self._task, tensors["context"][0].cpu()) if "context" in tensors else state

    def _bank(self, tensors: Mapping[str, Tensor]) -> Bank:
        down = {target: tensors[f"down.{target}"] for target in self.state.targets}
        up = {target: tensors[f"up.{target}"] for target in self.state.targets}
        return Bank(down, up, rows=len(self.rows))

    def _contextual(self, logits: Tensor) -> Tensor:
        """Return k ``[B, N]`` of all samples (eq. 4), differentiable in the task's own logits ``[1, t]``."""
        t = self._index
        context = self.state.context.to(logits.device)
        row = torch.cat([logits, context[t : t + 1, t:]], dim=1)
        whole = torch.cat([context[:t], row, context[t + 1 :]])
        return contextual(self.state, self.intrinsic, context=whole)


def learn(
    replicas: Replicas,
    state: AdapterState,
    task: str,
    lesson: Lesson,
    settings: Hyperparameters,
    *,
    rows: Tensor | None = None,
    again: bool | None = None,
    report: Callable[[Step], None] = lambda _step: None,
    check: Callable[[], None] = lambda: None,
) -> Learned:
    """Train the rows of ``task`` on a lesson and return the state with theta* in them.

    Args:
        replicas: the frozen language model and how increments act on it; they share every batch.
        state: holds the task already (expanded, keys aligned, or being retrained).
        task: whose rows and contextual logits learn.
        lesson: training and validation samples; validation only decides when to stop.
        settings: learning rate, budget, EMA mode.
        rows: those of the task's rows that learn; None is all.
        again: whether they have learned this task before (fewer steps are planned); None: as they look.
        report: called after every step.
        check: called during the survey and before every step; may raise to interrupt (nothing is lost but
            the steps).
    """
    _assert_frozen(replicas.language)
    looks = _survey(replicas, state, lesson, settings, check)
    own = state.rows_of(task) if rows is None else rows
    begun = any(bool(state.up[target][:, own].any()) for target in state.targets)
    if settings.aimed and not begun:
        state = _aimed(state, own, looks, settings, check)
    queries, device = lesson.encoded.queries, replicas.language.device
    pupil = Pupil(state, task, queries, device, rows=rows, share=settings.share)
    optimizer = _optimizer(pupil, looks, settings)
    ema = BalancedEma(pupil.live, pupil.tensors(), mode=settings.ema_mode)
    course = Course(
        settings,
        rows_per_epoch(lesson, pupil, settings),
        again=begun if again is None else again,
        chance=chance_loss(lesson),
    )
    loss_value, samples = 0.0, 0
    dropout = Dropout(settings.dropout, len(pupil.rows) * state.rank, settings.seed)
    for group in _endless(lesson, pupil, settings):
        if course.done():
            break
        check()
        rate = course.rate()
        loss_value, seen = _gradients(replicas, pupil, lesson, group, dropout)
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(list(pupil.live.values()), settings.clip_norm)
        optimizer.step(rate)
        alphas = {kind: alpha.tolist() for kind, alpha in ema.update().items()}
        samples += seen
        course.step(seen, loss_value)
        validation = None
        if course.time_to_validate() and lesson.validation:
            scored = _score(replicas, lesson, pupil, ema.served, lesson.validation, check)
            validation = scored.accuracy or 0.0
            course.note(validation, scored.loss)
        if course.time_to_confirm():
            course.confirm(_score(replicas, lesson, pupil, ema.served, lesson.train[:CONFIRMED], check).loss)
        report(course.describe(loss_value, rate * settings.peak_rate, validation, alphas))
    return Learned(
        state=pupil.state_with(ema.served),
        steps=course.steps,
        samples=samples,
        seconds=course.seconds(),
        loss=loss_value,
        statistics=ema.statistics,
    )


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


def chance_loss(lesson: Lesson) -> float | None:
    """Return the mean token loss of answering by the training answers' frequency; None for varied answers.

    A frequency says nothing of answers that hardly recur (fewer than ``RECURRING`` of each on average).
    """
    encoded = lesson.encoded
    answers = Counter(turn.answer for i in lesson.train for turn in encoded.examples[i].turns)
    total, tokens = answers.total(), sum(sum(encoded.samples[i].answer) for i in lesson.train)
    if not tokens or len(answers) < 2 or total < RECURRING * len(answers):
        return None
    return sum(count * math.log(total / count) for count in answers.values()) / tokens


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


def _gradients(
    replicas: Replicas, pupil: Pupil, lesson: Lesson, group: Sequence[Row], dropout: Dropout
) -> tuple[float, int]:
    """Set the gradients of the mean loss over a batch; return the loss and the number of samples.

    Every replica runs a share of the rows; the sum of their gradients is that of the whole batch.
    """
    names = list(pupil.live)
    whole = pupil.state.span == "all"
    shares = [slice(part, None, replicas.count) for part in range(min(replicas.count, len(group)))]
    encoded = lesson.encoded
    batches = [
        build_batch(encoded.samples, encoded.prefixes, group[share], cached=not whole) for share in shares
    ]
    tokens = sum(len(batch.target) for batch in batches)
    keep = dropout.draw(len(group))

    def work(on: Replica, share: int) -> tuple[float, tuple[Tensor | None, ...]]:
        batch = batches[share]
        kept = None if keep is None else keep[shares[share]]
        logits = forward(on, batch, lesson.store, partial(pupil.activate, keep=kept))
        target = batch.target.to(logits.device)
        loss = F.cross_entropy(logits.float(), target, reduction="sum") / tokens
        live = [pupil.live[name] for name in names]
        return float(loss.detach()), torch.autograd.grad(loss, live, allow_unused=True)

    losses, gradients = zip(*replicas.map(work, range(len(batches))), strict=True)
    for name, parts in zip(names, zip(*gradients, strict=True), strict=True):
        found = [part for part in parts if part is not None]
        pupil.live[name].grad = torch.stack(found).sum(dim=0) if found else None
    return sum(losses), sum(batch.samples for batch in batches)


def _score(
    replicas: Replicas,
    lesson: Lesson,
    pupil: Pupil,
    tensors: Mapping[str, Tensor],
    asked: Sequence[int],
    check: Callable[[], None],
) -> Score:
    whole = pupil.state.span == "all"
    return score_samples(
        replicas,
        lesson.encoded.samples,
        lesson.store,
        asked,
        partial(pupil.activate, tensors=tensors),
        cached=not whole,
        alike=alike_rows(pupil.intrinsic) if whole else None,
        check=check,
    )


def _survey(
    replicas: Replicas,
    state: AdapterState,
    lesson: Lesson,
    settings: Hyperparameters,
    check: Callable[[], None],
) -> dict[str, Look]:
    """Survey the base on at most ``survey_samples`` of the training samples."""
    order = list(lesson.train)
    random.Random(settings.seed).shuffle(order)
    rows = pack_rows(lesson.encoded.samples, order[: settings.survey_samples], pack=1, alike=None)
    groups = list(batches_of(rows, lesson.store.lengths(), batch_size=settings.batch_size, rng=None))
    first = replicas.increments.first_layer

    def run(on: Replica, group: Sequence[Row]) -> tuple[Tensor, Tensor]:
        cached = state.span != "all"
        batch = build_batch(lesson.encoded.samples, lesson.encoded.prefixes, group, cached=cached)
        logits = forward(on, batch, lesson.store, base_only)
        loss = F.cross_entropy(logits.float(), batch.target.to(logits.device), reduction="sum")
        begins = torch.cat([torch.ones(1, dtype=torch.bool), batch.answer_of.diff() != 0])
        return loss, batch.pick[begins]

    def look(on: Replica, group: Sequence[Row]) -> Glimpses:
        layers = list(on.language.backbone.layers)[first:]  # type: ignore[arg-type]
        return glimpse(layers, state.targets, partial(run, on, group))

    layers = len(replicas.language.backbone.layers) - first  # type: ignore[arg-type]
    return survey(replicas.map(look, groups, check=check), state.targets, layers)


def _aimed(
    state: AdapterState,
    rows: Tensor,
    looks: Mapping[str, Look],
    settings: Hyperparameters,
    check: Callable[[], None],
) -> AdapterState:
    """Let new rows (up projections zero) look where the survey found the answers."""
    generator = torch.Generator().manual_seed(settings.seed + 1)
    down = {
        target: looks[target].down(len(rows), state.rank, generator, check=check) for target in state.targets
    }
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
