"""Versions appear wholly or not at all, once per job, and are checked on every fetch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from adapter_store.errors import FencedOut, InputError, NotFoundError, VersionCorrupt
from adapter_store.matrix import AccuracyMatrix
from adapter_store.versions import Gate, Manifest, ManifestDraft, Probe, VersionStore


@pytest.fixture(params=["folder", "file-url", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = tmp_path / "the versions"
    return {
        "folder": str(folder),
        "file-url": folder.as_uri(),
        "memory": f"memory://versions-{uuid.uuid4().hex}",
    }[request.param]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "trained"
    (made / "extra").mkdir(parents=True)
    (made / "state.safetensors").write_bytes(bytes(range(256)) * 50)
    (made / "state.json").write_text('{"rank": 8}')
    (made / "extra" / "probe.png").write_bytes(b"png")
    return made


def draft(job_id: str = "job-1", **fields) -> ManifestDraft:
    values = {
        "base_id": "tiny",
        "base_digest": "d",
        "job_id": job_id,
        "dataset_id": "ds-1",
        "task": "digits",
        "decision": "expand",
        "tasks": ("digits",),
        **fields,
    }
    return ManifestDraft.model_validate(values)


def numbers(store: VersionStore) -> list[str]:
    return [manifest.version for manifest in store.list()]


def test_publish_list_fetch(url: str, folder: Path, tmp_path: Path) -> None:
    store = VersionStore(url, "strata", tmp_path / "cache")
    assert store.list() == []
    full = draft(
        settings={"rank": 8, "mode": "normalised"},
        accuracy=AccuracyMatrix.empty().with_stage("digits", {"digits": 0.9}, {"digits": 0.1}),
        routing_leak={"digits": 0.01},
        zero_shot_retention=0.99,
        gate=Gate(passed=True),
        probe=Probe(question="?", image="extra/probe.png", answer_token_ids=(1, 2), logprobs=(-0.1, -0.2)),
        seconds={"train": 1.5},
    )
    manifest = store.publish(folder, full, fence=1)
    assert (manifest.version, manifest.lineage, manifest.fence) == ("v1", "strata", 1)
    assert set(manifest.files) == {"state.safetensors", "state.json", "extra/probe.png"}
    second = store.publish(folder, draft("job-2", parent="v1"), fence=1)
    assert second.version == "v2"

    other = VersionStore(url, "strata", tmp_path / "cache")
    assert other.list() == [manifest, second]
    assert other.manifest("v1").model_dump() == {**full.model_dump(), **manifest.model_dump()}
    fetched = other.fetch("v1")
    for name in manifest.files:
        assert (fetched / name).read_bytes() == (folder / name).read_bytes()
    assert other.fetch("v1") == fetched
    assert other.of_job("job-2") == second
    assert other.of_job("job-3") is None
    assert Manifest.model_validate_json((fetched / "manifest.json").read_bytes()) == manifest


def test_lineages_do_not_see_each_other(url: str, folder: Path) -> None:
    VersionStore(url, "strata").publish(folder, draft(), fence=9)
    other = VersionStore(url, "other")
    assert other.list() == []
    assert other.publish(folder, draft(), fence=1).version == "v1"


def test_the_same_job_twice_is_the_same_version(url: str, folder: Path) -> None:
    first = VersionStore(url, "strata").publish(folder, draft(), fence=1)
    (folder / "state.json").write_text('{"rank": 16}')
    again = VersionStore(url, "strata").publish(folder, draft(), fence=2)
    assert again == first
    assert numbers(VersionStore(url, "strata")) == ["v1"]


def test_an_older_fence_is_out(url: str, folder: Path) -> None:
    store = VersionStore(url, "strata")
    store.raise_fence(5)
    store.raise_fence(5)
    with pytest.raises(FencedOut, match="token 5"):
        VersionStore(url, "strata").publish(folder, draft(), fence=4)
    with pytest.raises(FencedOut):
        store.raise_fence(4)
    with pytest.raises(FencedOut):
        store.publish(folder, draft(), fence=0)
    assert store.list() == []
    assert store.publish(folder, draft(), fence=1_795_357_015_334).version == "v1"
    with pytest.raises(FencedOut, match="token 1795357015334"):
        VersionStore(url, "strata").raise_fence(5)


def test_racing_publishers_get_one_number_each(url: str, folder: Path) -> None:
    results: list[tuple[str, str]] = []
    barrier = threading.Barrier(6)

    def publisher(number: int) -> None:
        store = VersionStore(url, "strata")
        barrier.wait()
        manifest = store.publish(folder, draft(f"job-{number % 3}"), fence=1)
        results.append((manifest.job_id, manifest.version))

    threads = [threading.Thread(target=publisher, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    published = VersionStore(url, "strata").list()
    assert sorted(manifest.job_id for manifest in published) == ["job-0", "job-1", "job-2"]
    assert {(manifest.job_id, manifest.version) for manifest in published} == set(results)


def test_racing_with_other_tokens_has_one_effect_per_job(url: str, folder: Path) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def publisher(fence: int) -> None:
        store = VersionStore(url, "strata")
        barrier.wait()
        try:
            outcomes.append(store.publish(folder, draft(), fence=fence).version)
        except FencedOut:
            outcomes.append("out")

    threads = [threading.Thread(target=publisher, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    published = VersionStore(url, "strata").list()
    assert len(published) == 1
    assert set(outcomes) - {"out"} == {published[0].version}
    assert len(outcomes) == 4


def test_a_half_written_directory_is_invisible_and_cleaned(tmp_path: Path, folder: Path) -> None:
    store = VersionStore(tmp_path / "s", "strata")
    store.publish(folder, draft("job-1"), fence=1)
    half = tmp_path / "s/strata/v2"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    (half / ".part-0123").write_bytes(b"a")
    assert numbers(store) == ["v1"]
    assert not store.exists("v2")
    with pytest.raises(NotFoundError, match="v2"):
        store.fetch("v2")
    assert store.publish(folder, draft("job-2"), fence=2).version == "v3"
    assert sorted(path.name for path in half.iterdir()) == ["manifest.json"]
    assert numbers(VersionStore(tmp_path / "s", "strata")) == ["v1", "v3"]


def test_a_sleeping_zombie_cannot_finish_its_version(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old worker stops after its last fence check, the new one publishes, then the old one goes on."""
    zombie, successor = (VersionStore(tmp_path / "s", "strata") for _ in range(2))
    create = zombie._storage.create_exclusive
    published: list[Manifest] = []

    def late(name: str, data: bytes) -> bool:
        if name.endswith("v1/manifest.json") and not published:
            published.append(successor.publish(folder, draft(), fence=2))
        return create(name, data)

    monkeypatch.setattr(zombie._storage, "create_exclusive", late)
    with pytest.raises(FencedOut):
        zombie.publish(folder, draft(), fence=1)
    assert [manifest.version for manifest in published] == ["v2"]
    assert VersionStore(tmp_path / "s", "strata").list() == published


@pytest.mark.parametrize("version", ["../v1", "v1/../v2", "v01", "V1", "", "latest", "v1\n", "v-1"])
def test_version_ids_that_are_none_are_refused(tmp_path: Path, version: str) -> None:
    store = VersionStore(tmp_path, "strata")
    for use in (store.fetch, store.manifest, store.exists):
        with pytest.raises(InputError, match="not allowed"):
            use(version)


def test_base_has_no_files(tmp_path: Path) -> None:
    store = VersionStore(tmp_path, "strata")
    assert store.exists("base")
    with pytest.raises(NotFoundError, match="untouched model"):
        store.fetch("base")


def test_folders_that_cannot_be_published(tmp_path: Path, folder: Path) -> None:
    store = VersionStore(tmp_path / "s", "strata")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="empty"):
        store.publish(empty, draft(), fence=1)
    with pytest.raises(InputError, match="no folder"):
        store.publish(tmp_path / "missing", draft(), fence=1)
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="link"):
        store.publish(folder, draft(), fence=1)
    (folder / "link").unlink()
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="written by the store"):
        store.publish(folder, draft(), fence=1)
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="probe"):
        store.publish(
            folder,
            draft(probe=Probe(question="?", image="no.png", answer_token_ids=(), logprobs=())),
            fence=1,
        )
    with pytest.raises(InputError):
        VersionStore(tmp_path, "../strata")
    with pytest.raises(InputError, match="cannot be used"):
        VersionStore("nosuchkind://x", "strata")
    assert store.list() == []


def test_tampered_files_are_found(tmp_path: Path, folder: Path) -> None:
    store = VersionStore(tmp_path / "s", "strata")
    version = tmp_path / "s/strata" / store.publish(folder, draft(), fence=1).version
    target = version / "state.safetensors"
    good = target.read_bytes()
    target.chmod(0o644)
    target.write_bytes(good[:-1] + b"\x00")
    with pytest.raises(VersionCorrupt, match=r"state\.safetensors"):
        store.fetch("v1")
    target.unlink()
    with pytest.raises(VersionCorrupt, match="lacks its file"):
        store.fetch("v1")
    secret = tmp_path / "secret"
    secret.write_bytes(good)
    target.symlink_to(secret)
    with pytest.raises(VersionCorrupt):
        store.fetch("v1")
    target.unlink()
    target.write_bytes(good)
    assert store.fetch("v1") == version


@pytest.mark.parametrize(
    "change",
    [
        {"version": "v2"},
        {"lineage": "other"},
        {"files": {"../../etc/passwd": "0" * 64}},
        {"files": {"/etc/passwd": "0" * 64}},
        {"files": {"state.json": "short"}},
        {"fence": None},
        {"surprise": 1},
        None,
    ],
)
def test_tampered_manifests_are_found_and_hide_no_other(
    tmp_path: Path, folder: Path, change: dict | None
) -> None:
    store = VersionStore(tmp_path / "s", "strata")
    store.publish(folder, draft("job-1"), fence=1)
    store.publish(folder, draft("job-2"), fence=1)
    path = tmp_path / "s/strata/v1/manifest.json"
    data = json.loads(path.read_text())
    path.write_text('{"version": "v1", ' if change is None else json.dumps({**data, **change}))
    fresh = VersionStore(tmp_path / "s", "strata")
    with pytest.raises(VersionCorrupt, match="v1"):
        fresh.fetch("v1")
    assert not fresh.exists("v1")
    assert numbers(fresh) == ["v2"]
    assert fresh.publish(folder, draft("job-3"), fence=1).version == "v3"


def test_a_damaged_cache_is_fetched_again(tmp_path: Path, folder: Path) -> None:
    url = f"memory://versions-{uuid.uuid4().hex}"
    store = VersionStore(url, "strata", tmp_path / "cache")
    store.publish(folder, draft(), fence=1)
    cached = store.fetch("v1") / "state.json"
    assert cached.is_relative_to(tmp_path / "cache")
    cached.write_text("broken")
    assert (store.fetch("v1") / "state.json").read_text() == '{"rank": 8}'


def test_damage_at_a_distance_is_found(tmp_path: Path, folder: Path) -> None:
    url = f"memory://versions-{uuid.uuid4().hex}"
    store = VersionStore(url, "strata", tmp_path / "cache")
    store.publish(folder, draft(), fence=1)
    (folder / "state.json").write_bytes(b"other")
    store._storage.put(folder / "state.json", "strata/v1/state.json")
    with pytest.raises(VersionCorrupt, match=r"state\.json"):
        store.fetch("v1")
    assert list((tmp_path / "cache/strata").iterdir()) == []


# Publishes in forked children; the child number n is killed by SIGKILL right before its n-th call
# of any function that changes the disk, and every second time also in the middle of a write.
KILLER = """
import io, json, os, shutil, signal, sys
from pathlib import Path
from adapter_store.versions import ManifestDraft, VersionStore

root, trained = Path(sys.argv[1]), Path(sys.argv[2])
draft = ManifestDraft(base_id="b", base_digest="d", job_id="job-1", dataset_id="ds", task="t",
                      decision="expand", tasks=("t",))

def deadly(n):
    calls = 0
    def wrap(real):
        def call(*a, **k):
            nonlocal calls
            calls += 1
            if calls == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*a, **k)
        return call
    def half(reader, writer, size=0):
        nonlocal calls
        calls += 1
        data = reader.read()
        writer.write(data[: len(data) // 2])
        writer.flush()
        if calls == n:
            os.kill(os.getpid(), signal.SIGKILL)
        writer.write(data[len(data) // 2 :])
    for name in ("link", "replace", "fsync", "mkdir", "unlink", "chmod"):
        setattr(os, name, wrap(getattr(os, name)))
    shutil.copyfileobj = half

report = []
for n in range(1, 500):
    home = root / str(n)
    pid = os.fork()
    if pid == 0:
        deadly(n)
        VersionStore(home, "strata").publish(trained, draft, fence=1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    seen = VersionStore(home, "strata")
    whole = [m.version for m in seen.list()]
    for version in whole:
        seen.fetch(version)
    again = VersionStore(home, "strata", settle_seconds=0).publish(trained, draft, fence=2)
    after = VersionStore(home, "strata")
    after.fetch(again.version)
    leftovers = [str(p) for p in after._storage.root.rglob(".part-*") if again.version not in str(p)
                 and "aliases" not in str(p) and p.parent.name != "fences"]
    report.append({"n": n, "killed": os.WIFSIGNALED(status), "before": whole, "again": again.version,
                   "after": [m.version for m in after.list()], "leftovers": leftovers})
    if not os.WIFSIGNALED(status):
        break
print(json.dumps(report))
"""


def test_killed_at_any_point_the_version_is_whole_or_absent(tmp_path: Path, folder: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "homes"), str(folder)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert len(report) > 20, "the publisher was killed at too few points to prove anything"
    assert [entry["killed"] for entry in report] == [True] * (len(report) - 1) + [False]
    absent = [entry for entry in report if not entry["before"]]
    whole = [entry for entry in report if entry["before"]]
    assert absent
    assert len(whole) >= 2
    for entry in report:
        assert len(entry["after"]) == 1, f"exactly one version per job: {entry}"
        assert entry["after"] == [entry["again"]]
        assert entry["leftovers"] == []
    for entry in whole:
        assert entry["before"] == entry["after"], "what was published stays what it is"
