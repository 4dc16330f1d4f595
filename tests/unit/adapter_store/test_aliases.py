"""Aliases: compare-and-set, history, rollback."""

from __future__ import annotations

import json
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from adapter_store.errors import AliasConflict, ConflictError, InputError, NotFoundError, StoreError
from adapter_store.versions import AliasTable
from adapter_store.versions.storage import open_storage

WHY: dict[str, Any] = {"reason": "gate passed", "actor": "test"}
PUBLISHED = {"v1", "v2", "v3"}


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else f"memory://aliases-{uuid.uuid4().hex}"


def table(url: str) -> AliasTable:
    return AliasTable(open_storage(url), "strata", PUBLISHED.__contains__)


def test_an_alias_never_moved_is_none(url: str) -> None:
    assert table(url).get("stable") is None
    assert table(url).history("stable") == []
    assert table(url).all() == {}


def test_move_and_history_across_readers(url: str) -> None:
    aliases = table(url)
    first = aliases.move("stable", "v1", expected_revision=0, **WHY)
    second = aliases.move("stable", "v2", expected_revision=1, reason="better", actor="anna")
    aliases.move("canary", "base", **WHY)
    other = table(url)
    assert other.get("stable") == second
    assert other.history("stable") == [first, second]
    assert (second.revision, second.version, second.reason, second.actor) == (2, "v2", "better", "anna")
    assert {name: record.version for name, record in other.all().items()} == {
        "stable": "v2",
        "canary": "base",
    }


@pytest.mark.parametrize("expected", [0, 2, 7])
def test_compare_and_set_refuses_another_revision(url: str, expected: int) -> None:
    aliases = table(url)
    aliases.move("stable", "v1", **WHY)
    with pytest.raises(AliasConflict, match="at revision 1"):
        aliases.move("stable", "v2", expected_revision=expected, **WHY)
    current = aliases.get("stable")
    assert current is not None
    assert current.version == "v1"


def test_of_many_movers_that_saw_the_same_revision_one_wins(url: str) -> None:
    table(url).move("stable", "v1", **WHY)
    barrier = threading.Barrier(8)
    outcomes: list[str] = []

    def mover(number: int) -> None:
        aliases = table(url)
        barrier.wait()
        try:
            aliases.move("stable", "v2", expected_revision=1, reason="race", actor=f"t{number}")
            outcomes.append("won")
        except AliasConflict:
            outcomes.append("lost")

    threads = [threading.Thread(target=mover, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]
    assert [record.revision for record in table(url).history("stable")] == [1, 2]


def test_movers_without_expectation_all_succeed_one_after_another(url: str) -> None:
    def mover() -> None:
        table(url).move("canary", "v3", **WHY)

    threads = [threading.Thread(target=mover) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record.revision for record in table(url).history("canary")] == [1, 2, 3, 4, 5, 6]


def test_rollback_walks_back_and_not_forth_again(url: str) -> None:
    aliases = table(url)
    for version in ("v1", "v2", "v2", "v3"):
        aliases.move("stable", version, **WHY)
    back = [aliases.rollback("stable", **WHY) for _ in range(3)]
    assert [record.version for record in back] == ["v2", "v1", "base"]
    assert [record.rolled_back_from for record in back] == ["v3", "v2", "v1"]
    assert [record.revision for record in back] == [5, 6, 7]
    with pytest.raises(ConflictError, match="no version before"):
        aliases.rollback("stable", **WHY)
    aliases.move("stable", "v3", **WHY)
    assert aliases.rollback("stable", **WHY).version == "base"


def test_rollback_compares_and_sets_too(url: str) -> None:
    aliases = table(url)
    aliases.move("stable", "v1", **WHY)
    with pytest.raises(AliasConflict):
        aliases.rollback("stable", expected_revision=5, **WHY)
    assert aliases.rollback("stable", expected_revision=1, **WHY).version == "base"


def test_other_aliases_have_no_base_under_them(url: str) -> None:
    aliases = table(url)
    with pytest.raises(ConflictError, match="no version before"):
        aliases.rollback("canary", **WHY)
    aliases.move("canary", "v1", **WHY)
    with pytest.raises(ConflictError, match="no version before"):
        aliases.rollback("canary", **WHY)


def test_only_published_versions_and_proper_names(url: str) -> None:
    aliases = table(url)
    with pytest.raises(NotFoundError, match="v9"):
        aliases.move("stable", "v9", **WHY)
    for version in ("../v1", "v0", "latest", ""):
        with pytest.raises(InputError):
            aliases.move("stable", version, **WHY)
    for alias in ("../stable", "v1", "base", "a/b", "", "A", "x" * 64, "a\n"):
        with pytest.raises(InputError):
            aliases.move(alias, "v1", **WHY)
        with pytest.raises(InputError):
            aliases.get(alias)
    assert aliases.all() == {}


def test_a_damaged_revision_names_its_file(tmp_path: Path) -> None:
    aliases = table(str(tmp_path))
    aliases.move("stable", "v1", **WHY)
    (tmp_path / "strata/aliases/stable/0000000002.json").write_text("{")
    with pytest.raises(StoreError, match=r"0000000002\.json"):
        aliases.get("stable")


def test_a_weight_is_kept_and_a_later_one_knows_since_when_the_version_is_named(url: str) -> None:
    aliases = table(url)
    moves = [("v1", 0.1), ("v1", 0.5), ("v2", 0.5), ("v2", None), ("v1", 1.0)]
    for version, weight in moves:
        aliases.move("canary", version, weight=weight, **WHY)
    history = table(url).history("canary")
    assert [(record.version, record.weight) for record in history] == moves
    assert [record.since for record in history] == [1, 1, 3, 3, 5]


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_weight_is_a_share_of_canary_or_shadow(url: str, weight: float) -> None:
    aliases = table(url)
    with pytest.raises(InputError, match="from 0 to 1"):
        aliases.move("canary", "v1", weight=weight, **WHY)
    with pytest.raises(InputError, match="only canary and shadow"):
        aliases.move("stable", "v1", weight=0.5, **WHY)
    assert aliases.all() == {}


def test_an_ended_alias_names_nothing_and_keeps_its_history(url: str) -> None:
    aliases = table(url)
    aliases.move("canary", "v1", weight=0.5, **WHY)
    with pytest.raises(AliasConflict):
        aliases.end("canary", expected_revision=7, **WHY)
    ended = aliases.end("canary", expected_revision=1, reason="too slow", actor="gateway")
    assert (ended.version, ended.ended, ended.revision) == ("v1", True, 2)
    other = table(url)
    assert other.get("canary") is None
    assert other.all() == {}
    assert other.history("canary")[-1] == ended
    with pytest.raises(NotFoundError):
        aliases.end("canary", **WHY)
    with pytest.raises(ConflictError, match="no version before"):
        aliases.rollback("canary", **WHY)
    again = aliases.move("canary", "v1", expected_revision=0, weight=0.5, **WHY)
    assert (again.revision, again.since, table(url).get("canary")) == (3, 3, again)
    aliases.move("canary", "v2", **WHY)
    aliases.end("canary", **WHY)
    aliases.move("canary", "v3", **WHY)
    with pytest.raises(ConflictError, match="no version before"):
        aliases.rollback("canary", **WHY)


def test_an_alias_that_was_never_there_or_is_stable_cannot_end(url: str) -> None:
    aliases = table(url)
    with pytest.raises(NotFoundError):
        aliases.end("canary", **WHY)
    aliases.move("stable", "v1", **WHY)
    with pytest.raises(InputError, match="always names a version"):
        aliases.end("stable", **WHY)


def test_records_of_earlier_programs_have_no_weight(tmp_path: Path) -> None:
    folder = tmp_path / "strata/aliases/canary"
    folder.mkdir(parents=True)
    old = {"alias": "canary", "version": "v1", "revision": 1, "moved_at": 1.0, "reason": "x", "actor": "y"}
    (folder / "0000000001.json").write_text(json.dumps(old))
    aliases = table(str(tmp_path))
    record = aliases.get("canary")
    assert record is not None
    assert (record.version, record.weight, record.since, record.ended) == ("v1", None, None, False)
    assert aliases.move("canary", "v1", weight=0.1, **WHY).since == 1


def test_previous_is_what_the_newest_move_left_in_whatever_order_moves_are_remembered(url: str) -> None:
    aliases = table(url)
    for version in ("v1", "v2", "v3", "v3"):
        aliases.move("stable", version, **WHY)
    for _ in range(2):  # the movers come late: each finds the newest move
        aliases.remember_previous()
        assert [record.version for record in aliases.history("previous")] == ["v2"]
    aliases.rollback("stable", **WHY)
    aliases.remember_previous()
    assert aliases.get("previous").version == "v3"  # type: ignore[union-attr]


def test_racing_moves_leave_the_previous_of_the_last_one(url: str) -> None:
    def mover(version: str) -> None:
        own = table(url)
        for _ in range(8):
            own.move("stable", version, **WHY)
            own.remember_previous()

    movers = [threading.Thread(target=mover, args=(version,)) for version in sorted(PUBLISHED)]
    for thread in movers:
        thread.start()
    for thread in movers:
        thread.join()
    moves = [record.version for record in table(url).history("stable")]
    last = [version for version in moves if version != moves[-1]][-1]
    assert table(url).get("previous").version == last  # type: ignore[union-attr]


def test_previous_is_not_set_by_hand(url: str) -> None:
    aliases = table(url)
    aliases.remember_previous()
    assert aliases.get("previous") is None
    for version in ("v1", "v2"):
        aliases.move("stable", version, **WHY)
    aliases.remember_previous()
    for attempt in (
        lambda: aliases.move("previous", "v3", **WHY),
        lambda: aliases.rollback("previous", **WHY),
        lambda: aliases.end("previous", **WHY),
    ):
        with pytest.raises(InputError, match=r"move stable.*another alias.*the history of stable"):
            attempt()
    assert [record.version for record in aliases.history("previous")] == ["v1"]


def test_previous_that_an_earlier_program_let_somebody_set_follows_stable_again(tmp_path: Path) -> None:
    aliases = table(str(tmp_path))
    for version in ("v1", "v2"):
        aliases.move("stable", version, **WHY)
    folder = tmp_path / "strata/aliases/previous"
    folder.mkdir()
    by_hand = {"alias": "previous", "version": "v3", "revision": 1, "moved_at": 9e9, **WHY}
    (folder / "0000000001.json").write_text(json.dumps(by_hand))
    aliases.remember_previous()
    assert [record.version for record in aliases.history("previous")] == ["v3", "v1"]
