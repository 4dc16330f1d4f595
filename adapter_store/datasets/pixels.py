"""Bound the pixels of uploads: a few thousand bytes can be a picture of millions of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from adapter_store.datasets.records import Limits
from adapter_store.errors import ImageError
from adapter_store.images import MAX_PIXELS


class TooManyPixels(ImageError):
    """Reject an upload whose pictures have too many pixels together, or take too much when they are kept."""


class PixelRoom:
    """Let threads decode while their pictures together stay within ``most`` pixels; one alone always fits."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait for room and keep it inside the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + pixels <= self._most)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()


ROOM = PixelRoom(2 * MAX_PIXELS)
"""What all data sets of this process decode at once; with its copies a pixel takes up to 16 bytes."""


class PixelBudget:
    """The pixels that the pictures of one upload may have together; threads may spend at once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._spent = 0
        self._picture_bytes = 0
        self.packed_bytes: int | None = None
        """Size of the upload as it was sent; None: that of its pictures counts."""

    def expect(self, picture_bytes: int) -> None:
        """Note a picture that will be checked, before any is."""
        self._picture_bytes += picture_bytes

    def spend(self, pixels: int) -> None:
        """Count a picture before it is decoded; raise TooManyPixels once all together have too many."""
        with self._lock:
            self._spent += pixels
            is_over = self._spent > self.allowed
        if is_over:
            raise TooManyPixels(
                f"the pictures have more than {self.allowed} pixels together; at most "
                f"{self._limits.max_total_pixels} are accepted, and {self._limits.max_pixels_per_byte} for "
                "each byte of the upload: split the data set, or make the pictures smaller"
            )

    @property
    def allowed(self) -> int:
        """Return how many pixels may be decoded."""
        limits = self._limits
        sent = self._picture_bytes if self.packed_bytes is None else self.packed_bytes
        by_bytes = max(limits.free_pixels, sent * limits.max_pixels_per_byte)
        return min(limits.max_total_pixels, by_bytes)
