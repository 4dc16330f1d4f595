"""Score answers by greedy exact match, with the coefficients that serving would use.

Teacher forcing with "the most likely token is the answer's token at every position, end token included" is
exactly greedy exact match, and needs one forward pass instead of a generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from adapter_store.increments import Bank, Increments, Term, gate_of
from adapter_store.routing import coefficients, intrinsic, mass_outside
from adapter_store.state import AdapterState
from trainer_worker.features import Encoded
from trainer_worker.prefixes import PrefixStore
from trainer_worker.replicas import Replica, Replicas
from trainer_worker.samples import Batch, Row, Sample, batches_of, build_batch, pack_rows


@dataclass(frozen=True, slots=True)
class Score:
    """Outcome on one set: exact matches, answers, and the mean token log loss."""

    correct: int
    answers: int
    loss: float

    @property
    def accuracy(self) -> float | None:
        """Return the share of exact matches; None without answers."""
        return self.correct / self.answers if self.answers else None


Activate = Callable[[Increments, Batch], AbstractContextManager[object]]
"""Switches a replica's increments on for one batch."""


def warm(
    replicas: Replicas,
    samples: Sequence[Sample],
    store: PrefixStore,
    order: Sequence[int],
    *,
    check: Callable[[], None] = lambda: None,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Let a store keep what the samples named by ``order`` need.

    ``check`` may raise to interrupt; ``report`` is told how many samples are done, of how many.
    """

    def enter(on: Replica, group: Sequence[Row]) -> None:
        store.enter(on.language, build_batch(samples, store.prefixes, group, cached=True))

    rows = pack_rows(samples, order, pack=4, alike=None)
    groups = list(batches_of(rows, store.lengths(), batch_size=16, rng=None))
    done = accumulate((sum(len(row.samples) for row in group) for group in groups), initial=0)

    def step() -> None:
        check()
        report(next(done), len(order))

    replicas.map(enter, groups, check=step)


def score_samples(
    replicas: Replicas,
    samples: Sequence[Sample],
    store: PrefixStore,
    order: Sequence[int],
    activate: Activate,
    *,
    cached: bool,
    alike: Sequence[int] | None = None,
    batch_size: int = 32,
    pack: int = 4,
    check: Callable[[], None] = lambda: None,
) -> Score:
    """Score the samples named by ``order``; ``activate(increments, batch)`` switches increments on.

    ``cached=False`` runs prefixes inside the rows (span "all"); then ``alike`` says which samples have equal
    coefficients and may share a row.
    """

    @torch.no_grad()
    def score(on: Replica, group: Sequence[Row]) -> tuple[int, int, int, float]:
        batch = build_batch(samples, store.prefixes, group, cached=cached)
        logits = forward(on, batch, store, activate)
        target = batch.target.to(logits.device)
        right = logits.argmax(dim=-1) == target
        whole = torch.ones(len(batch.sample_of_answer), dtype=torch.bool)
        whole[batch.answer_of[~right.cpu()]] = False
        loss = torch.nn.functional.cross_entropy(logits.float(), target, reduction="sum")
        return int(whole.sum()), len(whole), len(target), float(loss)

    rows = pack_rows(samples, order, pack=pack, alike=alike)
    groups = list(batches_of(rows, store.lengths(), batch_size=batch_size, rng=None))
    scored = replicas.map(score, groups, check=check)
    correct, answers, tokens, losses = zip(*scored, strict=True) if scored else ((), (), (), ())
    return Score(sum(correct), sum(answers), sum(losses) / max(sum(tokens), 1))


def forward(on: Replica, batch: Batch, store: PrefixStore, activate: Activate) -> Tensor:
    """Return the logits ``[n, vocabulary]`` at the batch's picked tokens, with increments switched on."""
    keys_values, entering = store.enter(on.language, batch)
    pictures = None if batch.cached else store.pictures_of(batch.prefixes)
    with activate(on.increments, batch):
        hidden = on.language.hidden(batch, keys_values, entering, pictures)
    return on.language.head(hidden)


@dataclass(frozen=True, slots=True)
class Served:
    """A state as serving uses it: one bank over all rows, unmasked coefficients."""

    state: AdapterState
    bank: Bank

    @classmethod
    def of(cls, state: AdapterState, increments: Increments) -> Served:
        """Put all rows of a state into one bank."""
        bank = Bank.from_state(state, dtype=increments.dtype, device=increments.device)
        return cls(state, bank)

    def coefficients(self, queries: Tensor) -> Tensor:
        """Return serving coefficients ``[B, N]`` (eq. 5)."""
        return coefficients(self.state, queries)

    def activate(self, c: Tensor) -> Activate:
        """Return the switch for batches whose samples' coefficients are the rows of ``c``."""

        def switch(increments: Increments, batch: Batch) -> AbstractContextManager[object]:
            return increments.active([Term(self.bank, gate_of(c[batch.owner], self.state.rank))])

        return switch


def base_only(increments: Increments, _batch: Batch) -> AbstractContextManager[object]:
    """Leave the base untouched."""
    return increments.active([])


def score_state(
    replicas: Replicas,
    served: Served,
    encoded: Encoded,
    store: PrefixStore,
    *,
    order: Sequence[int] | None = None,
    base: Score | None = None,
    check: Callable[[], None] = lambda: None,
) -> Score:
    """Score a state on an encoded set, or on the samples named by ``order``, with serving coefficients.

    If every coefficient is 0 the answers are the base's (I1): ``base`` is returned when given.
    """
    c = served.coefficients(encoded.queries)
    if base is not None and not bool(c.any()):
        return base
    whole = served.state.span == "all"
    return score_samples(
        replicas,
        encoded.samples,
        store,
        range(len(encoded)) if order is None else order,
        served.activate(c),
        cached=not whole,
        alike=alike_rows(c) if whole else None,
        check=check,
    )


def score_base(
    replicas: Replicas, encoded: Encoded, store: PrefixStore, *, check: Callable[[], None] = lambda: None
) -> Score:
    """Score the untouched base on an encoded set."""
    return score_samples(
        replicas, encoded.samples, store, range(len(encoded)), base_only, cached=True, check=check
    )


def leak_ratio(state: AdapterState, queries: Tensor, task: str) -> float:
    """Return the share of selection mass outside ``task``'s own rows, over its held-out queries ``[B, q]``.

    The mass is the intrinsic one (eq. 3): contextual mass lies on earlier rows by design, was there in
    training, and cannot make the task's answers change.
    """
    if not len(queries):
        return 0.0
    return float(mass_outside(intrinsic(state, queries), state, task).mean())


def alike_rows(c: Tensor) -> list[int]:
    """Number equal rows of ``c`` ``[B, N]`` alike."""
    return torch.unique(c, dim=0, return_inverse=True)[1].tolist()


@torch.no_grad()
def greedy_answer(
    on: Replica,
    sample: Sample,
    store: PrefixStore,
    activate: Activate,
    *,
    cached: bool,
    end_ids: frozenset[int],
    max_tokens: int = 16,
) -> tuple[list[int], list[float]]:
    """Generate the greedy answer to a sample's first question: token ids (with the end token), logprobs."""
    first = sample.answer.index(True)
    tail = list(sample.tail[:first])
    ids: list[int] = []
    logprobs: list[float] = []
    while len(ids) < max_tokens and (not ids or ids[-1] not in end_ids):
        # A token to predict is put at the end: only its place counts, not its value.
        asked = Sample(0, (*tail, 0), (False,) * len(tail) + (True,), (-1,) * len(tail) + (0,), sample.query)
        row = pack_rows([asked], [0], pack=1, alike=None)
        batch = build_batch([asked], [store.prefixes[sample.prefix]], row, cached=cached)
        batch = batch.with_owner(sample.prefix, sample.query)
        logits = forward(on, batch, store, activate)[0].float()
        token = int(logits.argmax())
        ids.append(token)
        logprobs.append(float(logits.log_softmax(dim=-1)[token]))
        tail.append(token)
    return ids, logprobs
