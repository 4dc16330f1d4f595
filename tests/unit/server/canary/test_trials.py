"""Canaries that are staged, passed over, judged and ended: a real store and real banks, no model."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from adapter_store.errors import EngineBusy, ProbeFailed, StoreError, StrataError
from adapter_store.versions import AliasRecord
from server.adaptation import Leased
from server.canary import trials as trials_module
from server.canary.pace import Pace
from server.canary.rule import Rule
from server.canary.shadow import Shadow
from server.canary.trials import Attempt, Trials
from server.engine import Engine, Sampling
from server.feedback.thumbs import Thumbs
from server.metrics import Metrics
from server.retrieval import Retriever
from tests.unit.server.test_residency import World, fails


class Tried:
    """One world with canary and shadow; ``look`` does what the background does once."""

    def __init__(self, home: Path, versions: int = 3, banks: int = 2) -> None:
        self.world = World(home, versions, banks)
        self.metrics = Metrics()
        self.thumbs = Thumbs()
        self.trials = Trials(
            self.world.live,
            self.world.following(self.metrics),
            rule=Rule(),
            thumbs=self.thumbs,
            banks=banks,
            open_shadow=self._shadow,
        )

    def _shadow(self, finished: Any) -> Shadow:
        return Shadow(
            engine=cast("Engine", self.world),
            retriever=cast("Retriever", None),
            residents=self.world.residents,
            metrics=self.metrics,
            room=4,
            waiting=2,
            finished=finished,
        )

    async def look(self) -> None:
        await self.world.live.refresh()
        await self.trials.bring()
        await self.trials.judge()

    def name(self, alias: str, version: str, weight: float | None = 1.0) -> None:
        self.world.store.aliases.move(alias, version, weight=weight, reason="test", actor="test")

    async def leased(self, model: str = "strata", asker: bytes = b"anna") -> Leased:
        async with self.trials.lease(model, lambda: asker) as leased:
            return leased

    async def version(self, model: str = "strata") -> str:
        return (await self.leased(model)).version

    async def fail(self, times: int) -> None:
        for _ in range(times):
            self.trials.failed(await self.attempt())

    async def attempt(self, **more: Any) -> Attempt:
        leased = await self.leased()
        return Attempt(
            leased, lambda: b"anna", (), Sampling(**more), choices=1, pace=Pace(time.perf_counter())
        )

    def why_not(self, alias: str) -> str | None:
        record = self.world.store.aliases.get(alias)
        assert record is not None
        return self.trials.answering(alias, record)

    def requests(self) -> dict[str, int]:
        return {slot: tally.requests for slot, _, tally in self.trials.seen()}

    def last_canary(self) -> AliasRecord:
        return self.world.store.aliases.history("canary")[-1]

    def decisions(self, decision: str) -> float | None:
        return self.metrics.registry.get_sample_value("strata_canary_decisions_total", {"decision": decision})


@pytest.fixture
async def tried(tmp_path: Path) -> Tried:
    found = Tried(tmp_path)
    found.world.move("v1")
    await found.world.live.refresh()
    return found


async def test_a_canary_answers_only_once_it_is_staged_and_probed(tried: Tried):
    tried.name("canary", "v2")
    await tried.world.live.refresh()
    assert await tried.version() == "v1"
    assert tried.why_not("canary") == "it is being loaded and probed"
    await tried.look()
    assert tried.why_not("canary") is None
    leased = await tried.leased()
    assert (leased.version, leased.alias, leased.part) == ("v2", "canary", "canary")
    assert sum(tried.world.live.inflight().values()) == 0


@pytest.mark.parametrize("model", ["strata@stable", "strata@v1"])
async def test_who_names_an_alias_or_version_gets_it_and_is_not_counted(tried: Tried, model: str):
    tried.name("canary", "v2")
    await tried.look()
    leased = await tried.leased(model)
    assert (leased.version, leased.part) == ("v1", None)
    tried.trials.failed(Attempt(leased, bytes, (), Sampling(), choices=1, pace=Pace(time.perf_counter())))
    assert tried.requests() == {"stable": 0, "canary": 0}


@pytest.mark.parametrize("weight", [None, 0.0])
async def test_without_a_weight_nobody_is_drawn(tried: Tried, weight: float | None):
    tried.name("canary", "v2", weight)
    await tried.look()
    assert await tried.version() == "v1"
    assert "it has no weight" in (tried.why_not("canary") or "")
    assert await tried.version("strata@canary") == "v2"


@pytest.mark.parametrize("error", [ProbeFailed("the probe answered nonsense"), EngineBusy("too much to do")])
async def test_a_canary_that_cannot_be_loaded_is_passed_over_with_the_reason(
    tried: Tried, error: StrataError
):
    tried.world.on_probe = fails(error, "v2")
    tried.name("canary", "v2")
    await tried.look()
    await tried.look()
    assert await tried.version() == "v1"
    assert error.message in (tried.why_not("canary") or "")
    assert tried.world.stable() == ("v1", "trainer")


async def test_a_canary_takes_the_only_bank_and_a_shadow_says_that_there_is_none(tried: Tried):
    tried.name("canary", "v2")
    tried.name("shadow", "v3")
    for _ in range(3):
        await tried.look()
        assert tried.why_not("canary") is None
        assert "set STRATA_BANKS to 3" in (tried.why_not("shadow") or "")
    tried.world.store.aliases.end("canary", reason="test", actor="test")
    await tried.look()
    assert tried.why_not("shadow") is None


async def test_a_swap_takes_the_bank_for_a_moment_and_stable_answers(
    tried: Tried, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trials_module, "_AGAIN_SECONDS", 0.0)
    tried.name("canary", "v2")
    await tried.look()
    tried.world.move("v3")
    await tried.world.live.refresh()
    assert await tried.version() == "v3"
    await tried.look()
    assert await tried.version() == "v2"


async def test_of_two_idle_banks_not_the_one_of_the_canary_is_taken(tmp_path: Path):
    tried = Tried(tmp_path, versions=4, banks=3)
    tried.world.move("v1")
    tried.name("canary", "v2")
    await tried.look()
    for pinned in ("v3", "v4"):
        assert await tried.version(f"strata@{pinned}") == pinned
    assert await tried.version() == "v2"


async def test_a_canary_whose_bank_is_wanted_again_and_again_comes_back_less_often(
    tried: Tried, monkeypatch: pytest.MonkeyPatch
):
    moment = 0.0
    monkeypatch.setattr(trials_module, "time", SimpleNamespace(monotonic=lambda: moment))
    tried.name("canary", "v2")
    returns: list[float] = []
    for second in range(200):
        moment = float(second)
        await tried.look()
        if tried.why_not("canary") is None:
            returns.append(moment)
            assert await tried.version("strata@v3") == "v3"  # takes the only other bank
    assert returns == [0, 2, 6, 14, 30, 62, 122, 182]


async def test_a_canary_that_stable_caught_up_with_is_over(tried: Tried):
    tried.name("canary", "v2")
    await tried.look()
    tried.world.move("v2")
    await tried.look()
    assert (await tried.leased()).part == "stable"
    assert tried.why_not("canary") == "stable answers with the same version"


async def test_the_base_can_be_a_canary(tried: Tried):
    tried.name("canary", "base")
    await tried.look()
    leased = await tried.leased()
    assert (leased.version, leased.resident, leased.part) == ("base", None, "canary")


async def test_three_failures_of_fifty_end_it_and_stable_answers(tried: Tried):
    tried.name("canary", "v2")
    await tried.look()
    await tried.fail(2)
    await tried.look()
    assert await tried.version() == "v2"
    await tried.fail(1)
    await tried.look()
    ended = tried.last_canary()
    assert (ended.ended, ended.version, ended.actor) == (True, "v2", "gateway")
    assert "3 of 3 requests failed" in ended.reason
    assert (await tried.version(), tried.decisions("errors")) == ("v1", 1)
    assert tried.world.stable() == ("v1", "trainer")


async def test_a_canary_that_clients_give_up_on_is_ended(tried: Tried):
    tried.name("canary", "v2", 0.5)
    await tried.look()
    for slot, seconds in (("stable", 0.1), ("canary", 30.0)):
        version = {"stable": "v1", "canary": "v2"}[slot]
        for _ in range(50):
            leased = Leased(version, slot, None, slot, lambda: None)
            pace = Pace(time.perf_counter() - seconds)
            attempt = Attempt(leased, bytes, (), Sampling(), choices=1, pace=pace)
            if slot == "stable":
                tried.trials.answered(attempt, cast("Any", None))
            else:
                tried.trials.given_up(attempt)
    assert tried.requests() == {"stable": 50, "canary": 50}
    await tried.look()
    assert "95 of 100 answers began within 30 s" in tried.last_canary().reason
    assert tried.decisions("slowdown") == 1


async def test_it_stops_at_once_even_if_the_store_is_away(tried: Tried, monkeypatch: pytest.MonkeyPatch):
    tried.name("canary", "v2")
    await tried.look()
    await tried.fail(3)

    def away(*_: object, **__: object) -> None:
        raise StoreError("the store is away")

    monkeypatch.setattr(tried.world.store.aliases, "end", away)
    for _ in range(2):
        with pytest.raises(StoreError):
            await tried.trials.judge()
        assert await tried.version() == "v1"
    monkeypatch.undo()
    await tried.trials.judge()
    assert (tried.last_canary().ended, tried.decisions("errors")) == (True, 1)


async def test_a_decision_of_an_operator_at_that_moment_stands(tried: Tried):
    tried.name("canary", "v2")
    await tried.look()
    await tried.fail(3)
    tried.name("canary", "v3")
    await tried.trials.judge()
    assert (tried.last_canary().version, tried.last_canary().ended) == ("v3", False)
    assert tried.decisions("errors") == 0
    await tried.look()
    assert await tried.version() == "v3"


async def test_thumbs_before_the_canary_do_not_count(tried: Tried):
    for _ in range(20):
        tried.thumbs.count("v2", "down")
    tried.name("canary", "v2")
    await tried.look()
    for _ in range(9):
        tried.thumbs.count("v2", "down")
    await tried.look()
    assert not tried.last_canary().ended
    tried.thumbs.count("v2", "down")
    await tried.look()
    assert "10 of 10 thumbs point down" in tried.last_canary().reason
    assert tried.decisions("thumbs_down") == 1


async def test_each_canary_is_counted_anew_and_another_weight_is_the_same_canary(tried: Tried):
    tried.trials.answered(await tried.attempt(), cast("Any", None))
    assert tried.requests() == {"stable": 1}
    tried.name("canary", "v2")
    await tried.look()
    await tried.fail(2)
    tried.name("canary", "v2", 0.999)
    await tried.look()
    assert tried.requests() == {"stable": 0, "canary": 2}
    tried.name("canary", "v3")
    await tried.look()
    assert tried.requests() == {"stable": 0, "canary": 0}


async def test_a_full_line_drops_and_what_is_not_greedy_is_not_compared(tried: Tried):
    tried.name("shadow", "v2")
    await tried.look()
    prepared = cast("Any", None)
    for more in ({}, {"temperature": 0.5}, {}, {}, {}):
        tried.trials.answered(await tried.attempt(**more), prepared)
    dropped = tried.metrics.registry.get_sample_value("strata_shadow_compared_total", {"outcome": "dropped"})
    assert dropped == 2
    assert tried.requests() == {"stable": 5, "shadow": 0}
