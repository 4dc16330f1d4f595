"""Decide what the next step computes, and keep running rows dense in their slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

from server.engine.kv_cache import KeyValues
from server.engine.prefix_cache import PrefixCache
from server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Piece:
    """Name the prompt tokens ``start`` to ``stop`` of one row that the next step computes."""

    sequence: Sequence
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Plan:
    """List a step's work: rows that get one token each (slots 0..n-1 in order), and prompt pieces."""

    decode: list[Sequence] = field(default_factory=list)
    prefill: list[Piece] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.decode or self.prefill)


class Scheduler:
    """Admit waiting sequences, pick prompt pieces within a token budget, and free slots.

    ``running[i]`` lies in slot i; the first ``decoding`` of them have their prompt computed, the others are
    tail rows whose prompts are in progress.
    """

    def __init__(
        self,
        memory: KeyValues,
        prefixes: PrefixCache,
        *,
        max_batch: int,
        prefill_tokens: int,
        mixed_prefill_tokens: int,
    ) -> None:
        """Allow ``prefill_tokens`` a step if nothing decodes, ``mixed_prefill_tokens`` if rows would wait."""
        self.memory, self.prefixes = memory, prefixes
        self.max_batch = max_batch
        self.prefill_tokens, self.mixed_prefill_tokens = prefill_tokens, mixed_prefill_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.decoding = 0
        self.prefix_hits = self.prefix_misses = 0

    def schedule(self) -> Plan:
        """Admit what fits and plan the next step; empty when there is nothing to do."""
        self._admit()
        decode = self.running[: self.decoding]
        if decode:
            self.memory.ensure(len(self.running), self._longest())
        return Plan(decode, self._pick_prefill(bool(decode)))

    def advance(self, pieces: Rows[Piece]) -> list[int]:
        """Record that pieces were computed; give the indices of those that complete their rows' prompts."""
        for piece in pieces:  # all before any row moves: a row takes along only what it is known to hold
            piece.sequence.filled = piece.stop
        complete = [index for index, piece in enumerate(pieces) if piece.sequence.prefilled]
        for index in complete:
            self._begin_decoding(pieces[index].sequence)
        return complete

    def _begin_decoding(self, sequence: Sequence) -> None:
        place = sequence.slot
        if place != self.decoding:
            other = self.running[self.decoding]
            self.memory.swap(place, self.decoding, max(sequence.filled, other.filled))
            self.running[place], self.running[self.decoding] = other, sequence
            other.slot, sequence.slot = place, self.decoding
        self.decoding += 1

    def remember(self, sequence: Sequence) -> None:
        """Keep the prompt segments of a healthy row, heads newest: without its head a tail is of no use."""
        for segment in reversed(sequence.segments):
            if self.prefixes.get(segment.key) is None:
                kept = self.memory.read(sequence.slot, segment.start, segment.stop)
                self.prefixes.put(segment.key, kept)

    def remove(self, sequence: Sequence, *, poisoned: bool = False) -> None:
        """Take a sequence out wherever it is; its slot is free at once and zeroed if ``poisoned``."""
        if sequence.slot < 0:
            if sequence in self.waiting:
                self.waiting.remove(sequence)
            return
        hole = sequence.slot
        if poisoned:
            self.memory.clear(hole)
        if hole < self.decoding:
            self.decoding -= 1
            hole = self._fill_hole(hole, self.decoding)
        self._fill_hole(hole, len(self.running) - 1)
        self.running.pop()
        sequence.slot = -1
        sequence.embeds = sequence.gathered = None

    def reap(self, gone: Callable[[Sequence], bool]) -> list[Sequence]:
        """Remove and return every sequence for which ``gone`` is true."""
        removed = [sequence for sequence in (*self.waiting, *self.running) if gone(sequence)]
        for sequence in removed:
            self.remove(sequence)
        return removed

    def _fill_hole(self, hole: int, last: int) -> int:
        if hole != last:
            moved = self.running[last]
            self.memory.move(last, hole, moved.filled)
            self.running[hole] = moved
            moved.slot = hole
        return last

    def _admit(self) -> None:
        if not self.waiting:
            return
        computing = {
            segment.key
            for sequence in self.running[self.decoding :]
            for segment in sequence.segments
            if segment.start >= sequence.cached
        }
        longest = max((sequence.reserved_tokens for sequence in self.running), default=0)
        held: list[Sequence] = []
        try:
            while self.waiting and len(self.running) < self.max_batch:
                sequence = self.waiting[0]
                longest = max(longest, sequence.reserved_tokens)
                if not self.memory.fits(len(self.running) + 1, longest):
                    break
                self.waiting.popleft()
                missing = [segment.key for segment in sequence.segments if segment.key not in self.prefixes]
                if missing and missing[0] in computing:
                    # Another row computes this prefix now: wait for it rather than repeat it.
                    held.append(sequence)
                    continue
                computing.update(missing)
                self._start(sequence)
        finally:
            self.waiting.extendleft(reversed(held))

    def _longest(self) -> int:
        """Give the tokens that the longest running row holds, or will hold after its prompt."""
        return max((max(row.filled, row.prompt_tokens) for row in self.running), default=0) + 1

    def _start(self, sequence: Sequence) -> None:
        try:
            longest = max(self._longest(), sequence.prompt_tokens + 1)
            self.memory.ensure(len(self.running) + 1, longest)
        except Exception:
            self.waiting.appendleft(sequence)
            raise
        sequence.slot = len(self.running)
        self.running.append(sequence)
        found: list[bytes] = []
        for segment in sequence.segments:
            kept = self.prefixes.get(segment.key)
            if kept is None:
                break
            self.memory.write(sequence.slot, segment.start, kept)
            sequence.filled = sequence.cached = segment.stop
            found.append(segment.key)
        self.prefixes.touch(reversed(found))
        if sequence.cached:
            self.prefix_hits += 1
        elif sequence.segments:
            self.prefix_misses += 1

    def _pick_prefill(self, mixed: bool) -> list[Piece]:
        """Choose prompt pieces, oldest row first, whose padded size stays within the budget."""
        budget = self.prefill_tokens
        if mixed:
            # While most rows wait for their first token, stalling the rest gains more than it costs.
            behind = len(self.running) - self.decoding + len(self.waiting)
            behind = min(behind, self.max_batch - self.decoding)
            budget = max(self.mixed_prefill_tokens, budget * behind // (behind + self.decoding))
        pieces: list[Piece] = []
        widest = 0
        for sequence in sorted(self.running[self.decoding :], key=lambda row: row.arrived_seconds):
            size = min(sequence.prompt_tokens - sequence.filled, budget)
            if pieces and (len(pieces) + 1) * max(widest, size) > budget:
                break
            widest = max(widest, size)
            pieces.append(Piece(sequence, sequence.filled, sequence.filled + size))
        return pieces
