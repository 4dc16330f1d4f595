"""A damaged version is refused until its files were restored; no restart is needed for that."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from adapter_store.errors import StateInvalid, VersionCorrupt
from adapter_store.versions import VersionStore
from server.residency import VersionRefused
from tests.unit.adapter_store.test_versions import draft
from tests.unit.server.test_residency import World, fails


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def damage(path: Path) -> bytes:
    """Spoil a file of a version in place; return what it held."""
    before = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(b"9" + before[1:])
    return before


async def until(condition: Callable[[], bool]) -> None:
    """Let the follower run until ``condition`` holds; fail after a minute."""
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come true in time")


async def refused_by(world: World, version: str) -> str:
    with pytest.raises(VersionRefused) as error:
        await world.residents.hold(version)
    return error.value.message


@pytest.mark.parametrize("is_promoted", [False, True], ids=["asked for", "promoted"])
async def test_a_damaged_version_that_was_restored_is_served_without_a_restart(
    world: World, tmp_path: Path, is_promoted: bool
):
    world.move("v1")
    await world.live.refresh()
    state = tmp_path / "versions" / "strata" / "v2" / "state.json"
    whole, times = damage(state), state.stat()
    world.move("v2")
    await world.live.refresh()
    assert (world.live.served, world.stable()) == ("v1", ("v1", "gateway"))
    assert "restore it from a backup" in await refused_by(world, "v2")
    state.write_bytes(b"8" + whole[1:])
    assert await world.live.why_refused("v2") == world.live.refused["v2"], "it is still damaged"
    state.write_bytes(whole)
    os.utime(state, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a backup restores it
    if is_promoted:
        assert await world.live.why_refused("v2") is None
        world.move("v2")
        await world.live.refresh()
        assert (world.live.served, world.stable()) == ("v2", ("v2", "trainer"))
    else:
        assert await world.residents.hold("v2") is not None
    assert world.live.refused == {}


@pytest.mark.parametrize("spoiled", [b"0" * 64, b"{"], ids=["of another file", "unreadable"])
async def test_a_manifest_that_was_restored_is_read_again(world: World, tmp_path: Path, spoiled: bytes):
    path = tmp_path / "versions" / "strata" / "v2" / "manifest.json"
    whole = path.read_bytes()
    sha256 = hashlib.sha256(b"1").hexdigest().encode()
    path.chmod(0o644)
    path.write_bytes(whole.replace(sha256, spoiled) if len(spoiled) == len(sha256) else spoiled)
    world.store = VersionStore(tmp_path / "versions", "strata")
    world.residents = world.fresh_residents(banks=2)
    await refused_by(world, "v2")
    path.write_bytes(whole)
    assert await world.residents.hold("v2") is not None
    assert [manifest.version for manifest in world.store.list()] == ["v1", "v2", "v3"]


async def test_what_is_refused_is_not_read_again_before_it_changed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    damage(tmp_path / "versions" / "strata" / "v2" / "state.json")
    await refused_by(world, "v2")
    read: list[str] = []
    monkeypatch.setattr(world.store, "fetch", read.append)
    await refused_by(world, "v2")
    assert await world.live.why_refused("v2")
    world.on_load = fails(StateInvalid("x"), "v1")
    monkeypatch.undo()
    await refused_by(world, "v1")
    (tmp_path / "versions" / "strata" / "v1" / "state.json").touch()
    monkeypatch.setattr(world.store, "fetch", read.append)
    await refused_by(world, "v1")
    assert read == [], "what is no damage stays refused"


async def test_a_refused_version_is_looked_at_now_and_then_and_at_once_when_it_is_promoted(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    residents = world.residents = world.fresh_residents(banks=2, look_seconds=3600)
    world.live = world.follower()
    state = tmp_path / "versions" / "strata" / "v2" / "state.json"
    whole = damage(state)
    looks: list[str] = []
    stamps = world.store.stamps
    monkeypatch.setattr(world.store, "stamps", lambda version: (looks.append(version), stamps(version))[1])
    await refused_by(world, "v2")
    looks.clear()
    for _ in range(5):
        await refused_by(world, "v2")
    assert looks == ["v2"]
    state.write_bytes(whole)
    await refused_by(world, "v2")
    assert await world.live.why_refused("v2") is None
    assert await residents.hold("v2") is not None


async def test_the_follower_forgets_a_refusal_once_the_files_are_restored(world: World, tmp_path: Path):
    """Nobody asks for the version meanwhile; stable stays where the gateway put it until it is promoted."""
    world.residents = world.fresh_residents(banks=2, look_seconds=0.01)
    world.live = world.follower()
    world.move("v1")
    await world.live.start()
    try:
        state = tmp_path / "versions" / "strata" / "v2" / "state.json"
        whole = damage(state)
        world.move("v2")
        await until(lambda: world.stable() == ("v1", "gateway"))
        assert "then promote it" in world.live.refused["v2"]
        state.write_bytes(whole)
        await until(lambda: not world.live.refused)
        assert (world.live.served, world.stable()) == ("v1", ("v1", "gateway"))
        world.move("v2")
        await until(lambda: world.live.served == "v2")
    finally:
        await world.live.stop()


async def test_a_version_that_is_served_is_not_refused_by_an_older_look(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    state = tmp_path / "versions" / "strata" / "v2" / "state.json"
    whole = damage(state)
    await refused_by(world, "v2")
    state.write_bytes(b"8" + whole[1:])  # half restored
    has_read, go_on = threading.Event(), threading.Event()
    verify = world.store.verify

    def slow(version: str) -> None:
        try:
            verify(version)
        finally:
            if not has_read.is_set():
                has_read.set()
                go_on.wait(60)

    monkeypatch.setattr(world.store, "verify", slow)
    promoted = asyncio.create_task(world.live.why_refused("v2"))
    try:
        assert await asyncio.to_thread(has_read.wait, 60)
        state.write_bytes(whole)
        assert await world.residents.hold("v2") is not None
    finally:
        go_on.set()
    assert await promoted is None
    assert world.live.refused == {}
    assert "v2" in world.residents


def test_a_store_elsewhere_is_asked_once_for_all_files_of_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = VersionStore(f"memory://listed-{uuid.uuid4().hex}", "strata")
    for name in ("state.json", "increments/a.bin", "increments/b.bin"):
        (tmp_path / "trained" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "trained" / name).write_text(name)
    store.publish(tmp_path / "trained", draft(), fence=1)
    asked: list[str] = []
    memory = type(fsspec.filesystem("memory"))
    for name in ("ls", "info"):
        monkeypatch.setattr(memory, name, noted(asked, getattr(memory, name)))
    found = store.stamps("v1")
    assert len(set(found)) == 4
    assert "" not in found
    assert [path.partition("/strata/")[2] for path in asked] == ["v1", "v1/increments"]


def noted(asked: list[str], function: Any) -> Any:
    def call(files: Any, path: str, *args: Any, **options: Any) -> Any:
        asked.append(path)
        return function(files, path, *args, **options)

    return call


def test_a_store_elsewhere_tells_what_was_written_again(tmp_path: Path):
    url = f"memory://restored-{uuid.uuid4().hex}"
    store = VersionStore(url, "strata")
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "state.json").write_text("whole")
    store.publish(folder, draft(), fence=1)
    path = f"{url}/strata/v1/state.json"
    published = store.stamps("v1")
    assert store.stamps("v1") == published
    with fsspec.open(path, "wb") as file:
        file.write(b"other")  # pyright: ignore[reportAttributeAccessIssue]
    spoiled = store.stamps("v1")
    assert spoiled != published
    with pytest.raises(VersionCorrupt, match="restore it from a backup, which needs no restart"):
        store.verify("v1")
    fsspec.filesystem("memory").rm(path)
    assert store.stamps("v1") not in (published, spoiled)
    with fsspec.open(path, "wb") as file:
        file.write(b"whole")  # pyright: ignore[reportAttributeAccessIssue]
    assert store.stamps("v1") != spoiled
    store.verify("v1")
