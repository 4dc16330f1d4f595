"""What decides whether a version serves: only its own faults refuse it, and only those move the alias."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from adapter_store.errors import (
    BaseMismatch,
    EngineBusy,
    ProbeFailed,
    StateInvalid,
    StoreError,
    StrataError,
    UnavailableError,
    VersionCorrupt,
)
from adapter_store.matrix import AccuracyMatrix
from adapter_store.versions import Gate, ManifestDraft, Probe, VersionStore
from server.adaptation import Following, LiveVersions, WrongBase
from server.engine import Chunk, Engine, GenerationRequest
from server.engine.banks import Banks
from server.metrics import Metrics
from server.probing import Prober
from server.residency import Entry, Resident, Residents, VersionRefused
from server.retrieval import Prepared, Retriever

Fault = Callable[[str], None]


class World:
    """A real store and real banks; the engine computes nothing, and each step can be made to fail."""

    def __init__(self, home: Path, versions: int = 3, banks: int = 2) -> None:
        self.store = VersionStore(home / "versions", "strata")
        for number in range(versions):
            self._publish(home / f"draft{number}", number)
        self.banks = Banks(lambda state, _: cast("Any", state), banks)
        self.on_load: Fault = lambda _: None
        self.on_probe: Fault = lambda _: None
        self.residents = self.fresh_residents(banks)
        self.live = self.follower()

    def fresh_residents(self, banks: int, open_pool: Any = None, look_seconds: float = 0) -> Residents:
        """Return residents that know no version yet, on this world's store."""
        return Residents(
            engine=cast("Engine", self),
            store=self.store,
            entry=Entry(self._load, open_pool, self._probe),
            metrics=Metrics(),
            banks=banks,
            look_seconds=look_seconds,
        )

    def loaded(self) -> dict[str, int]:
        return self.banks.loaded()

    def follower(self) -> LiveVersions:
        return LiveVersions("strata", self.following(Metrics()))

    def following(self, metrics: Metrics) -> Following:
        return Following(self.store, self.residents, metrics, poll_seconds=0.01)

    def _publish(self, folder: Path, number: int, parent: str = "base") -> None:
        folder.mkdir()
        (folder / "state.json").write_text(str(number))
        draft = ManifestDraft(
            parent=parent,
            base_id="other-base",
            base_digest="0" * 64,
            job_id=f"job-{number}",
            dataset_id="ds-1",
            task="digits",
            decision="expand",
            tasks=("digits",),
            settings={},
            accuracy=AccuracyMatrix(),
            routing_leak={},
            zero_shot_retention=None,
            gate=Gate(passed=True),
            probe=None,
            seconds={},
        )
        self.store.publish(folder, draft, fence=number + 1)

    def _load(self, folder: Path) -> Any:
        self.on_load(folder.name)
        return SimpleNamespace(rows=1, rank=1)

    async def _probe(self, resident: Resident, _: Path) -> None:
        await asyncio.sleep(0)
        self.on_probe(resident.version)

    async def stage(self, version: str, state: Any) -> None:
        slot = self.banks.reserve(version)
        if slot is not None:
            self.banks.fill(slot, state)

    def release(self, version: str) -> None:
        self.banks.release(version)

    def move(self, *versions: str) -> None:
        for version in versions:
            self.store.aliases.move("stable", version, reason="test", actor="trainer")

    def stable(self) -> tuple[str, str]:
        record = self.store.aliases.get("stable")
        assert record is not None
        return record.version, record.actor


def fails(error: Exception, *versions: str) -> Fault:
    def fault(version: str) -> None:
        if version in versions:
            raise error

    return fault


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("error", [StoreError("x"), OSError("x"), EngineBusy("x")])
async def test_what_may_pass_refuses_nothing(world: World, error: Exception):
    world.move("v1")
    await world.live.refresh()
    world.on_load = fails(error, "v2")
    world.move("v2")
    await world.live.refresh()
    with pytest.raises(UnavailableError):
        await world.residents.hold("v2")
    assert (world.live.served, world.live.refused, world.stable()) == ("v1", {}, ("v2", "trainer"))
    world.on_load = fails(error)
    await world.live.refresh()
    assert world.live.served == "v2"


@pytest.mark.parametrize(
    ("error", "stable"),
    [
        (ProbeFailed("x"), ("v1", "gateway")),
        (VersionCorrupt("x"), ("v1", "gateway")),
        (BaseMismatch("x"), ("v2", "trainer")),
        (StateInvalid("x"), ("v2", "trainer")),
    ],
)
async def test_only_a_fault_of_the_version_moves_the_alias(
    world: World, error: StrataError, stable: tuple[str, str]
):
    world.move("v1")
    await world.live.refresh()
    world.on_load = fails(error, "v2")
    world.move("v2")
    await world.live.refresh()
    assert (world.live.served, list(world.live.refused), world.stable()) == ("v1", ["v2"], stable)
    with pytest.raises(VersionRefused):
        await world.residents.hold("v2")


@pytest.mark.parametrize("fault", [StoreError("x"), OSError("x")])
async def test_a_put_back_that_the_store_refused_for_a_moment_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: Exception
):
    world.move("v1")
    await world.live.refresh()
    world.on_load = fails(ProbeFailed("x"), "v2")
    world.move("v2")

    def away(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(world.store.aliases, "move", away)
    await world.live.refresh()
    assert (world.live.served, world.stable()) == ("v1", ("v2", "trainer"))
    monkeypatch.undo()
    await world.live.refresh()
    assert (world.live.served, world.stable()) == ("v1", ("v1", "gateway"))


async def test_another_base_ends_the_start_in_words(world: World):
    world.on_load = fails(BaseMismatch("x"), "v2")
    world.move("v1", "v2")
    with pytest.raises(WrongBase, match=r"v2.*other-base.*STRATA_BASE"):
        await asyncio.wait_for(world.live.start(), 10)
    assert world.stable() == ("v2", "trainer")


async def test_the_start_waits_for_a_store_that_fails_for_a_while(world: World):
    world.move("v1")
    faults = [StoreError("x"), OSError("x")]

    def fault(_: str) -> None:
        if faults:
            raise faults.pop()

    world.on_load = fault
    await asyncio.wait_for(world.live.start(), 10)
    assert world.live.served == "v1"
    await world.live.stop()


async def test_versions_that_are_missing_are_each_tried_once(world: World, tmp_path: Path):
    world.move("v1", "v2", "v3", "v2", "v3")
    for version in ("v2", "v3"):
        (tmp_path / "versions" / "strata" / version / "manifest.json").unlink()
    fresh = World.__new__(World)
    fresh.__dict__.update(world.__dict__)
    fresh.store = VersionStore(tmp_path / "versions", "strata")
    fresh.residents = fresh.fresh_residents(banks=2)
    live = fresh.follower()
    await asyncio.wait_for(live.refresh(), 10)
    assert live.served == "v1"
    assert fresh.stable() == ("v3", "trainer")


async def test_a_ready_version_is_brought_at_once(world: World):
    await world.residents.bring("v1")
    await world.residents.bring("v2")
    probed, gate = asyncio.Event(), asyncio.Event()

    async def slow(*_: object) -> None:
        probed.set()
        await gate.wait()

    world.residents._probe = slow
    loading = asyncio.create_task(world.residents.bring("v3"))
    await asyncio.wait_for(probed.wait(), 60)
    ready = [version for version in ("v1", "v2") if version in world.residents]
    assert len(ready) == 1
    await asyncio.wait_for(world.residents.bring(ready[0]), 1)
    gate.set()
    await loading


async def test_a_load_that_is_given_up_gives_its_bank_back(world: World):
    probed = asyncio.Event()

    async def endless(*_: object) -> None:
        probed.set()
        await asyncio.Event().wait()

    probe, world.residents._probe = world.residents._probe, endless
    for version in ("v1", "v2", "v3"):
        loading = asyncio.create_task(world.residents.bring(version))
        await asyncio.wait_for(probed.wait(), 60)
        probed.clear()
        assert version in world.banks.loaded(), "the load holds a bank when it is given up"
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
    world.residents._probe = probe
    for version in ("v1", "v2", "v3"):
        await world.residents.bring(version)


def test_a_bank_released_while_it_fills_is_free_afterwards():
    banks = Banks(lambda state, _: cast("Any", state), 1)
    state = cast("Any", SimpleNamespace(rows=1, rank=1))
    slot = banks.reserve("v1")
    assert slot is not None
    banks.release("v1")
    banks.fill(slot, state)
    again = banks.reserve("v2")
    assert again is slot
    banks.release("v2")
    assert banks.reserve("v2") is None  # somebody else wants it after all
    banks.fill(slot, state)
    with pytest.raises(UnavailableError):
        banks.reserve("v3")


class BusyEngine:
    """Refuse every question, as an engine does whose waiting line is full."""

    async def generate(self, _: GenerationRequest) -> AsyncIterator[Chunk]:
        raise EngineBusy("256 requests are waiting already")
        yield


class EmptyRetriever:
    async def prepare(self, _: object) -> Prepared:
        return Prepared((1,), (), 0, None, None, None)


async def test_a_busy_engine_is_no_failed_probe(tmp_path: Path):
    prober = Prober(
        cast("Retriever", EmptyRetriever()), cast("Engine", BusyEngine()), end_ids=frozenset(), tolerance=0.1
    )
    probe = Probe(question="q", image=None, answer_token_ids=(1,), logprobs=(0.0,))
    resident = Resident("v1", cast("Any", None), cast("Any", SimpleNamespace(probe=probe)), 0)
    with pytest.raises(EngineBusy):
        await prober(resident, tmp_path)


async def test_the_engine_holds_the_pool_that_a_version_was_folded_into(world: World):
    folded = SimpleNamespace(rows=3, rank=1)
    pool = SimpleNamespace(staged=lambda: folded)
    residents = world.fresh_residents(2, lambda _: pool)
    resident = await residents.hold("v1")
    assert resident is not None
    assert resident.pool is pool
    slot = world.banks.acquire("v1")
    assert cast("Any", slot.bank) is folded
    assert slot.increments == 3


async def test_a_version_that_the_engine_lost_is_brought_in_again(world: World):
    before = await world.residents.hold("v1")
    assert before is not None
    await world.residents.bring("v2")
    world.banks.lose(before.slot)
    assert not world.residents.ready("v1")
    assert world.residents.ready("v2")
    again = await world.residents.hold("v1")
    assert again is not None
    assert again.slot == before.slot
    assert sorted(world.banks.loaded()) == ["base", "v1", "v2"]
    assert world.residents.inflight() == {"base": 0, "bank0": 2, "bank1": 0}


async def test_the_start_falls_back_to_an_ancestor_rather_than_to_what_stable_named_last(
    world: World, tmp_path: Path
):
    world._publish(tmp_path / "draft3", 3, parent="v1")
    world._publish(tmp_path / "draft4", 4, parent="v4")
    world.move("v1", "v4", "v3", "v5")
    world.on_load = fails(VersionCorrupt("x"), "v5", "v4")
    await asyncio.wait_for(world.live.start(), 10)
    assert (world.live.served, world.stable()) == ("v1", ("v1", "gateway"))
    await world.live.stop()
