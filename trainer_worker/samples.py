"""Lay questions out as rows of tokens: one picture in front, several questions packed behind it.

A ``Sample`` is one conversation about at most one picture, split where increments begin to act: its *prefix*
(chat head and picture) and its *tail* (question, answer, end). Rows of one batch have equal prefix lengths;
a block mask keeps the questions of a row from seeing each other.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

TAIL_MULTIPLE = 2
"""Rows are padded to multiples of this, so that few different shapes occur."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens before the increments act; ``image`` indexes the encoded pictures, None for no picture."""

    ids: tuple[int, ...]
    image: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation: which prefix it stands behind, its tail, and where the answers are.

    ``answer[i]`` is True where ``tail[i]`` must be predicted; ``turn[i]`` numbers the answer it belongs to.
    ``query`` indexes the rows of the encoded queries.
    """

    prefix: int
    tail: tuple[int, ...]
    answer: tuple[bool, ...]
    turn: tuple[int, ...]
    query: int

    @property
    def fed(self) -> int:
        """Return how many tokens of the tail are run: the last one is only predicted."""
        return len(self.tail) - 1


@dataclass(frozen=True, slots=True)
class Row:
    """Samples (by index) that share one row, hence one prefix."""

    prefix: int
    samples: tuple[int, ...]
    length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one forward pass over ``B`` rows of ``T`` tokens behind ``P`` cached prefix tokens.

    ``ids, positions, owner``: ``[B, T]``; ``owner`` is the sample index of a token. ``mask``: bool
    ``[B, 1, T, P + T]``. ``pick`` ``[n]`` indexes the flattened tokens whose next token is an answer token,
    ``target`` ``[n]`` is that token, ``answer_of`` ``[n]`` numbers the answer (consecutive from 0) and
    ``sample_of_answer`` maps it to its sample. ``pieces`` are the samples' places: row, start, end.
    """

    prefixes: tuple[int, ...]
    cached: int
    ids: Tensor
    positions: Tensor
    owner: Tensor
    mask: Tensor
    pick: Tensor
    target: Tensor
    answer_of: Tensor
    sample_of_answer: tuple[int, ...]
    pieces: tuple[tuple[int, int, int], ...]

    @property
    def samples(self) -> int:
        """Return how many samples the batch holds."""
        return len(set(self.sample_of_answer))

    def with_owner(self, prefix: int, sample: int) -> Batch:
        """Return a one-row batch that belongs to another prefix and sample."""
        return replace(self, prefixes=(prefix,), owner=torch.full_like(self.owner, sample))


def pack_rows(
    samples: Sequence[Sample], order: Sequence[int], *, pack: int, alike: Sequence[int] | None
) -> list[Row]:
    """Put up to ``pack`` samples of one prefix into a row, in the given order.

    With ``alike`` (span "all", where the prefix itself is gated) only samples with equal ``alike`` values,
    that is with equal coefficients, share a row.
    """
    waiting: dict[tuple[int, int], list[int]] = {}
    rows: list[Row] = []
    for index in order:
        sample = samples[index]
        key = (sample.prefix, alike[index] if alike is not None else 0)
        held = waiting.setdefault(key, [])
        held.append(index)
        if len(held) >= pack:
            rows.append(_row(samples, waiting.pop(key)))
    rows.extend(_row(samples, held) for held in waiting.values())
    return rows


def batches_of(
    rows: Sequence[Row], prefix_lengths: Sequence[int], *, batch_size: int, rng: random.Random | None
) -> Iterator[list[Row]]:
    """Yield lists of rows with equal prefix length and similar length, about ``batch_size`` samples each.

    With ``rng`` rows are shuffled before and batches after bucketing; without it the order is fixed.
    """
    buckets: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        buckets[prefix_lengths[row.prefix]].append(row)
    batches: list[list[Row]] = []
    for _, bucket in sorted(buckets.items()):
        if rng is not None:
            rng.shuffle(bucket)
        bucket.sort(key=lambda row: -(-row.length // TAIL_MULTIPLE))
        batch: list[Row] = []
        held = 0
        for row in bucket:
            batch.append(row)
            held += len(row.samples)
            if held >= batch_size:
                batches.append(batch)
                batch, held = [], 0
        if batch:
            batches.append(batch)
    if rng is not None:
        rng.shuffle(batches)
    yield from batches


def build_batch(
    samples: Sequence[Sample], prefixes: Sequence[Prefix], rows: Sequence[Row], *, cached: bool
) -> Batch:
    """Build the tensors for some rows.

    ``cached=True``: the prefix comes as keys and values, rows hold tails only. ``cached=False`` (span "all"):
    rows begin with the prefix tokens themselves, which every sample of the row sees.
    """
    prefix_length = len(prefixes[rows[0].prefix].ids)
    shared = 0 if cached else prefix_length
    past = prefix_length if cached else 0
    longest = max(row.length for row in rows) + shared
    width = -(-longest // TAIL_MULTIPLE) * TAIL_MULTIPLE
    shape = (len(rows), width)
    ids = torch.zeros(shape, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    owner = torch.zeros(shape, dtype=torch.long)
    segment = torch.full(shape, -1, dtype=torch.long)
    pick, target, answer_of, sample_of_answer, pieces = [], [], [], [], []
    for b, row in enumerate(rows):
        if shared:
            ids[b, :shared] = torch.tensor(prefixes[row.prefix].ids)
            positions[b, :shared] = torch.arange(shared)
            segment[b, :shared] = 0
        owner[b] = row.samples[0]
        start = shared
        for number, index in enumerate(row.samples, start=1):
            sample = samples[index]
            end = start + sample.fed
            ids[b, start:end] = torch.tensor(sample.tail[: sample.fed])
            positions[b, start:end] = torch.arange(prefix_length, prefix_length + sample.fed)
            owner[b, start:end] = index
            segment[b, start:end] = number
            pieces.append((b, start, end))
            last_turn = -1
            for offset, wanted in enumerate(sample.answer):
                if not wanted:
                    continue
                if sample.turn[offset] != last_turn:
                    last_turn = sample.turn[offset]
                    sample_of_answer.append(index)
                pick.append(b * width + start + offset - 1)
                target.append(sample.tail[offset])
                answer_of.append(len(sample_of_answer) - 1)
            start = end
    return Batch(
        prefixes=tuple(row.prefix for row in rows),
        cached=past,
        ids=ids,
        positions=positions,
        owner=owner,
        mask=_block_mask(segment, past),
        pick=torch.tensor(pick, dtype=torch.long),
        target=torch.tensor(target, dtype=torch.long),
        answer_of=torch.tensor(answer_of, dtype=torch.long),
        sample_of_answer=tuple(sample_of_answer),
        pieces=tuple(pieces),
    )


def _block_mask(segment: Tensor, past: int) -> Tensor:
    """Return ``[B, 1, T, past + T]``: see the prefix (cached, or segment 0) and the own segment so far."""
    rows, width = segment.shape
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    own = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
    inside = own & causal
    before = torch.ones(rows, width, past, dtype=torch.bool)
    return torch.cat([before, inside], dim=2)[:, None]


def _row(samples: Sequence[Sample], members: Sequence[int]) -> Row:
    return Row(samples[members[0]].prefix, tuple(members), sum(samples[i].fed for i in members))
