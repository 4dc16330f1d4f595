"""Data sets that wait to be checked are bounded in number, and room returns when a check has really ended."""

from __future__ import annotations

import asyncio
import threading

import pytest

from adapter_store.errors import DatasetsBusy
from server.pools import DATASETS, Pool


def test_only_data_sets_are_bounded():
    DATASETS.require_room()
    assert Pool("any", 1).require_room() is None


async def test_what_finds_too_many_waiting_is_refused_until_one_has_ended():
    pool, go_on = Pool("check", 1, most_waiting=2), threading.Event()
    calls = [asyncio.create_task(pool.run(go_on.wait, 30)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(DatasetsBusy, match="3 data sets are checked or wait") as refused:
        await pool.run(go_on.wait, 30)
    assert refused.value.retry_after_seconds > 0
    calls[2].cancel()  # who waits and leaves makes room at once
    await asyncio.sleep(0.01)
    pool.require_room()
    calls[0].cancel()  # who is being served and leaves does not: the thread goes on
    await asyncio.sleep(0.01)
    calls.append(asyncio.create_task(pool.run(go_on.wait, 30)))
    await asyncio.sleep(0)
    with pytest.raises(DatasetsBusy):
        pool.require_room()
    go_on.set()
    assert await asyncio.gather(calls[1], calls[3]) == [True, True]
    assert await asyncio.gather(*(pool.run(go_on.wait, 30) for _ in range(3))) == [True, True, True]


async def test_a_call_that_fails_makes_room():
    pool = Pool("check", 1, most_waiting=0)
    for _ in range(3):
        with pytest.raises(ValueError, match="invalid literal"):
            await pool.run(int, "x")
    assert await pool.run(int, "1") == 1
