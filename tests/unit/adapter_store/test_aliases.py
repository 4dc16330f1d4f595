"""Aliases: compare-and-set, history, rollback."""

from __future__ import annotations

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
