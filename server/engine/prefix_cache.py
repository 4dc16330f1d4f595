"""Remember the keys and values of prompt prefixes, so that pictures and system prompts are computed once.

A prompt is cut into segments: at the end of every chat turn, and where the increments begin to act. A
segment's key is the digest of everything before its end: token ids, pictures and, only from ``gate_start``
on, the version and the coefficients. So all versions and all requests share the part before ``gate_start``.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

_MIN_SHARED_TOKENS = 8
_MIN_GATED_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Segment:
    """Name the tokens from ``start`` to ``stop`` of a prompt, given all before them, by ``key``."""

    start: int
    stop: int
    key: bytes


def cut_prompt(
    input_ids: Sequence[int],
    images: Sequence[tuple[int, str]],
    boundary: tuple[int, int],
    turn_end_ids: frozenset[int],
    salt: bytes,
) -> tuple[Segment, ...]:
    """Cut a prompt into cacheable segments; at least the last token is left out, for it must be computed.

    Args:
        input_ids: the prompt.
        images: for every picture the index of its first placeholder and its digest, in order.
        boundary: where a cut is forced, and from where on ``salt`` counts: the first adapted token both
        times,
            or the prompt's length as the second if nothing is adapted.
        turn_end_ids: tokens that end a chat turn.
        salt: digest of version and coefficients.
    """
    forced, gate_start = boundary
    segments: list[Segment] = []
    key, start = b"", 0
    for stop in _cuts(input_ids, forced, gate_start, turn_end_ids):
        digest = hashlib.blake2b(key, digest_size=20)
        digest.update(array("q", input_ids[start:stop]).tobytes())
        for position, image in images:
            if start <= position < stop:
                digest.update(f"|{position}:{image}".encode())
        if stop > gate_start:
            digest.update(b"|gate:" + salt)
        key = digest.digest()
        segments.append(Segment(start, stop, key))
        start = stop
    return tuple(segments)


def _cuts(
    input_ids: Sequence[int], forced: int, gate_start: int, turn_end_ids: frozenset[int]
) -> Iterator[int]:
    last = 0
    for stop in range(1, len(input_ids)):
        gated = stop > gate_start
        enough = stop - last >= (_MIN_GATED_TOKENS if gated else _MIN_SHARED_TOKENS)
        if stop == forced or (input_ids[stop - 1] in turn_end_ids and enough):
            yield stop
            last = stop


class PrefixCache:
    """Keep segments' keys and values up to ``max_bytes``, dropping the least recently used."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> torch.Tensor | None:
        """Return the segment ``[layers, 2, tokens, heads * head_dim]`` and mark it used, or None."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def touch(self, keys: Iterable[bytes]) -> None:
        """Mark remembered segments used, the last one latest."""
        for key in keys:
            self._entries.move_to_end(key)

    def put(self, key: bytes, entry: torch.Tensor) -> None:
        """Keep a segment, unless it alone is larger than the cache."""
        if key in self._entries or entry.nbytes > self.max_bytes:
            return
        self._entries[key] = entry
        self.nbytes += entry.nbytes
        while self.nbytes > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.nbytes -= dropped.nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.nbytes = 0
