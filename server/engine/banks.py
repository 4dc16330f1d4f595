"""Know which adapter version lies in which resident bank, and how many requests use it.

A bank is refilled only when its version was released and its last request has ended, so a request always
finishes on the version it began with.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from adapter_store.errors import InputError, NotFoundError, UnavailableError
from server.engine.protocol import BASE_VERSION

if TYPE_CHECKING:
    from adapter_store.state import AdapterState

_POLL_SECONDS = 0.01


@dataclass(slots=True, eq=False)
class BankSlot:
    """Hold one bank's version and count; ``bank`` is the engine's own, None for the base and if empty.

    ``fills`` counts how often it was filled; ``released`` orders released versions, oldest lowest; None is in
    use. ``filling`` names the version to come; ``abandoned`` tells that whoever wanted it has left.
    """

    index: int = -1
    version: str | None = None
    bank: Any = None
    increments: int = 0
    rank: int = 0
    fills: int = 0
    inflight: int = 0
    released: int | None = None
    filling: str | None = None
    abandoned: bool = False


class Banks:
    """Lend banks to requests and fill idle ones; safe from any thread."""

    def __init__(self, build: Callable[[AdapterState, BankSlot], Any], count: int = 2) -> None:
        """Prepare ``count`` empty banks; ``build`` makes one from a state and the slot with its old bank."""
        self._build = build
        self._lock = threading.Lock()
        self._base = BankSlot(version=BASE_VERSION)
        self._slots = [BankSlot(index) for index in range(count)]
        self._releases = 0

    def acquire(self, version: str) -> BankSlot:
        """Count a request in on ``version``.

        Raises:
            NotFoundError: the version is not loaded, or is about to be replaced.
        """
        with self._lock:
            slot = self._find(version)
            if slot is None or slot.filling is not None:
                raise NotFoundError(f"version '{version}' is not loaded", param="model")
            slot.inflight += 1
            return slot

    def leave(self, slot: BankSlot) -> None:
        """Count a request out."""
        with self._lock:
            slot.inflight -= 1

    def loaded(self) -> dict[str, int]:
        """Give every loaded version with its requests in flight."""
        with self._lock:
            slots = [self._base, *self._slots]
            return {slot.version: slot.inflight for slot in slots if slot.version is not None}

    def release(self, version: str) -> None:
        """Allow ``version`` to be replaced once drained; base and unknown versions are ignored.

        A version that is still being loaded is released as soon as it is in its bank.
        """
        with self._lock:
            coming = self._coming(version)
            if coming is not None:
                coming.abandoned = True
                return
            slot = self._find(version)
            if slot is not None and slot is not self._base and slot.released is None:
                self._release(slot)

    def reserve(self, version: str) -> BankSlot | None:
        """Choose the bank for ``version``: an empty one, else the one released longest ago.

        Returns:
            The bank, closed to new requests; None if the version is loaded or being loaded already.

        Raises:
            UnavailableError: every bank is in use.
        """
        with self._lock:
            known = self._find(version)
            if known is not None and known.filling is None:
                known.released = None
                return None
            coming = self._coming(version)
            if coming is not None:
                coming.abandoned = False
                return None
            open_slots = [slot for slot in self._slots if slot.filling is None]
            empty = [slot for slot in open_slots if slot.version is None]
            released = [slot for slot in open_slots if slot.released is not None]
            if not empty and not released:
                held = ", ".join(str(slot.filling or slot.version) for slot in self._slots)
                raise UnavailableError(f"no bank is free for {version!r}: release one of {held} first")
            chosen = empty[0] if empty else min(released, key=lambda slot: slot.released or 0)
            chosen.filling = version
            return chosen

    def lose(self, index: int) -> None:
        """Forget what lies in a bank whose memory is gone; its version is answered no more until staged."""
        with self._lock:
            slot = self._slots[index]
            slot.version, slot.bank, slot.released = None, None, None

    def filling(self, version: str) -> bool:
        """Tell whether ``version`` is on its way into a bank."""
        with self._lock:
            return self._coming(version) is not None

    def cancel(self, slot: BankSlot) -> None:
        """Give a reserved bank back as it was."""
        with self._lock:
            slot.filling, slot.abandoned = None, False

    async def stage(self, version: str, state: AdapterState) -> None:
        """Put ``state`` into a free or released bank once that is drained; see ``Engine.stage``."""
        while (slot := self.reserve(version)) is None:
            if not self.filling(version):
                return
            await asyncio.sleep(_POLL_SECONDS)
        try:
            while slot.inflight:  # noqa: ASYNC110 - the count falls in another thread
                await asyncio.sleep(_POLL_SECONDS)
        except asyncio.CancelledError:
            self.cancel(slot)
            raise
        await asyncio.shield(asyncio.to_thread(self.fill, slot, state))

    def fill(self, slot: BankSlot, state: AdapterState) -> None:
        """Put ``state`` into a reserved and drained bank; on an error the bank is left empty."""
        if slot.inflight:
            raise RuntimeError("a bank with requests in flight cannot be filled")
        version, slot.version = slot.filling, None
        try:
            slot.bank = self._build(state, slot)
        except BaseException:
            with self._lock:
                slot.filling, slot.released, slot.bank, slot.abandoned = None, None, None, False
            raise
        with self._lock:
            slot.increments, slot.rank = state.rows, state.rank
            slot.fills += 1
            slot.version, slot.filling, slot.released = version, None, None
            if slot.abandoned:
                slot.abandoned = False
                self._release(slot)

    def _release(self, slot: BankSlot) -> None:
        self._releases += 1
        slot.released = self._releases

    def _coming(self, version: str) -> BankSlot | None:
        return next((slot for slot in self._slots if slot.filling == version), None)

    def _find(self, version: str) -> BankSlot | None:
        return next((slot for slot in (self._base, *self._slots) if slot.version == version), None)


def spread(slot: BankSlot, coefficients: torch.Tensor | None) -> torch.Tensor | None:
    """Check a request's coefficients ``[N]`` and repeat each for its r ranks, as eq. 6 wants them.

    Returns:
        The gate ``[N * r]`` float32, or None if all coefficients are zero.

    Raises:
        InputError: wrong length or not finite.
    """
    if coefficients is None:
        return None
    flat = coefficients.detach().flatten().to(torch.float32)
    if not torch.isfinite(flat).all():
        raise InputError("coefficients must be finite", param="coefficients")
    if not flat.any():
        return None
    if slot.bank is None or flat.numel() != slot.increments:
        raise InputError(
            f"version '{slot.version}' takes {slot.increments} coefficients, got {flat.numel()}",
            param="coefficients",
        )
    return flat.repeat_interleave(slot.rank)
