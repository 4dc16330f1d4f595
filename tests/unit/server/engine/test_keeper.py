"""What keeps vLLM running, with cores that die on demand (the real ones are killed in tests/vllm)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from adapter_store.errors import BaseModelError, UnavailableError
from server.engine.vllm_client import keeper as module
from server.engine.vllm_client.keeper import Keeper


class Mortal:
    """A core without a model."""

    kv_tokens = 64

    def __init__(self, *, opens: bool = True, restartable: bool = True) -> None:
        self.opens, self.restartable = opens, restartable
        self.dead = self.closed = False

    def open(self) -> None:
        if not self.opens:
            raise RuntimeError("no memory is left")

    def close(self) -> None:
        self.closed = True

    def submit(self, *_: Any) -> AsyncGenerator[Any, None]:
        raise NotImplementedError

    async def call(self, *_: Any) -> list[Any]:
        raise NotImplementedError


class Row:
    """Give cores one after the other, and note which were prepared."""

    def __init__(self, *cores: Mortal, faults: int = 0, fault: Exception | None = None) -> None:
        self.cores, self.given = list(cores), 0
        self.prepared: list[Mortal] = []
        self.faults = faults
        self.fault = fault or UnavailableError("a worker could not take it now")

    def make(self) -> Any:
        self.given += 1
        return self.cores[self.given - 1]

    async def prepare(self, core: Any) -> None:
        if self.prepared and self.faults:
            self.faults -= 1
            raise self.fault
        self.prepared.append(core)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.005)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_SECONDS", 0.01)


async def until(reached: Callable[[], bool]) -> None:
    for _ in range(2000):
        if reached():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not come true")


async def test_a_dead_core_is_replaced_and_prepared_before_requests_get_it() -> None:
    row = Row(first := Mortal(), second := Mortal())
    keeper = Keeper(row.make, row.prepare)
    keeper.start()
    assert await keeper.core() is first
    assert keeper.alive
    first.dead = True
    assert not keeper.alive
    with pytest.raises(UnavailableError, match="started again"):
        await keeper.core()
    await until(lambda: keeper.alive)
    assert await keeper.core() is second
    assert row.prepared == [first, second]
    assert first.closed
    keeper.shutdown()
    assert second.closed


@pytest.mark.parametrize(
    "fault", [None, Exception("Call to collective_rpc method failed"), TypeError("None")]
)
async def test_a_restart_that_fails_is_tried_again(fault: Exception | None) -> None:
    cores = (first := Mortal(), Mortal(opens=False), fourth := Mortal(), last := Mortal())
    row = Row(*cores, faults=1, fault=fault)
    keeper = Keeper(row.make, row.prepare)
    keeper.start()
    await keeper.core()
    first.dead = True
    await until(lambda: keeper.restarting)
    assert not keeper.alive
    await until(lambda: keeper.alive)  # one does not open, the next cannot be prepared
    assert await keeper.core() is last
    assert fourth.closed
    assert not keeper.restarting
    keeper.shutdown()


async def test_who_watches_does_not_leave_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row(Mortal())
    keeper = Keeper(row.make, row.prepare)
    keeper.start()

    async def stumble() -> None:
        raise KeyError("not foreseen")

    monkeypatch.setattr(keeper, "_keep", stumble)
    await keeper.core()
    await until(lambda: keeper.died is not None)
    assert "not foreseen" in (keeper.died or "")
    assert keeper._watching is not None
    assert isinstance(keeper._watching.exception(), KeyError)
    keeper.shutdown()


async def test_a_core_that_opens_after_the_end_is_closed() -> None:
    class Slow(Mortal):
        def open(self) -> None:
            keeper._stopping = True

    row = Row(slow := Slow())
    keeper = Keeper(row.make, row.prepare)
    keeper.start()
    await until(lambda: slow.closed)
    keeper.shutdown()


async def test_a_core_that_cannot_come_back_is_told_so() -> None:
    row = Row(first := Mortal(restartable=False))
    keeper = Keeper(row.make, row.prepare)
    keeper.start()
    await keeper.core()
    assert "started again" not in keeper.told_of_death()
    first.dead = True
    await until(lambda: keeper.died is not None)
    assert not keeper.restarting
    with pytest.raises(UnavailableError, match="restart the server"):
        await keeper.core()
    keeper.shutdown()


async def test_a_base_that_vllm_cannot_load_is_an_error_for_all_who_wait() -> None:
    row = Row(Mortal(opens=False))
    keeper = Keeper(row.make, row.prepare)
    keeper.start()
    for _ in range(2):
        with pytest.raises(BaseModelError, match="no memory is left"):
            await keeper.core()
    keeper.shutdown()


async def test_who_stops_waiting_leaves_the_start_to_the_others() -> None:
    row = Row(first := Mortal())
    keeper = Keeper(row.make, row.prepare)
    keeper.start()
    impatient = asyncio.create_task(keeper.core())
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert await keeper.core() is first
    keeper.shutdown()
