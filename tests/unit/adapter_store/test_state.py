"""The state's rules: what expansion keeps, what a folder gives back, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_store.errors import BaseMismatch, InputError, NotFoundError, StateInvalid
from adapter_store.state import AdapterState, RoutingSettings

SHAPES = {"o_proj": (3, 16, 24), "q_proj": (3, 24, 16)}


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def make_state(tasks: int = 2, rows: int = 3, seed: int = 0) -> AdapterState:
    generator = torch.Generator().manual_seed(seed)
    state = AdapterState.empty("digest-a", SHAPES, query_width=12, rank=2)
    for index in range(tasks):
        name = f"task{index}"
        state = state.expand(name, rows, generator)
        own = state.rows_of(name)
        up = {
            key: torch.randn(size[0], rows, size[2], 2, generator=generator) for key, size in SHAPES.items()
        }
        state = state.with_rows(own, up=up).with_usage(name, torch.rand(state.rows, generator=generator))
        state = state.with_context(name, torch.randn(index, generator=generator))
        state = state.with_centroids(name, torch.randn(2, 12, generator=generator))
    return state


def test_empty_state_round_trips(tmp_path: Path) -> None:
    state = AdapterState.empty("digest-a", SHAPES, query_width=12)
    state.save(tmp_path)
    loaded = AdapterState.load(tmp_path, base_digest="digest-a")
    assert (loaded.rows, loaded.total_rank, loaded.shapes, loaded.targets) == (0, 0, SHAPES, tuple(SHAPES))


def test_expanded_rows_start_as_nothing_with_the_right_spread() -> None:
    state = AdapterState.empty("d", {"o_proj": (4, 256, 8)}, query_width=64, rank=8)
    state = state.expand("birds", 16, torch.Generator().manual_seed(1))
    assert not state.up["o_proj"].any()
    assert state.down["o_proj"].std() == pytest.approx(1 / math.sqrt(256), rel=0.02)
    torch.testing.assert_close(state.keys.norm(dim=-1), torch.ones(16, 1))
    assert state.total_rank == 128


def test_i4_expand_keeps_everything_earlier_byte_for_byte() -> None:
    parent = make_state()
    child = parent.expand("later", 4, torch.Generator().manual_seed(9))
    n, t = parent.rows, len(parent.tasks)
    assert bytes_of(child.keys[:n]) == bytes_of(parent.keys)
    assert bytes_of(child.task_of[:n]) == bytes_of(parent.task_of)
    assert bytes_of(child.usage[:t, :n]) == bytes_of(parent.usage)
    assert not child.usage[:, n:].any()
    assert bytes_of(child.context[:t, :t]) == bytes_of(parent.context)
    assert bytes_of(child.centroids) == bytes_of(parent.centroids)
    for name in SHAPES:
        assert bytes_of(child.down[name][:, :n]) == bytes_of(parent.down[name])
        assert bytes_of(child.up[name][:, :n]) == bytes_of(parent.up[name])
    assert child.tasks == (*parent.tasks, "later")


def test_more_keys_of_one_task_leave_the_first_ones_of_all_others_as_they_were() -> None:
    parent = make_state()
    wide = torch.nn.functional.normalize(torch.randn(3, parent.query_width), dim=-1)
    own = parent.rows_of("task1")
    child = parent.with_rows(own, keys=wide.expand(len(own), -1, -1))
    others = parent.task_of != parent.task_index("task1")
    assert bytes_of(child.keys[others][:, :1]) == bytes_of(parent.keys[others])
    assert torch.equal(child.keys[others][:, 1:], parent.keys[others].expand(-1, 2, -1))
    assert torch.equal(child.keys[own], wide.expand(len(own), -1, -1))
    assert child.expand("later", 2).keys.shape == (parent.rows + 2, 3, parent.query_width)


def test_a_branch_copies_increments_and_changes_nothing_that_is_there() -> None:
    parent = make_state()
    rows = parent.rows_of("task1")
    keys = torch.nn.functional.normalize(torch.randn(len(rows), 2, parent.query_width), dim=-1)
    child = parent.branch("task1", rows, keys)
    n = parent.rows
    assert child.tasks == parent.tasks
    assert child.rows_of("task1").tolist() == [*rows.tolist(), *range(n, n + len(rows))]
    assert bytes_of(child.keys[:n, :1]) == bytes_of(parent.keys)
    assert torch.equal(child.keys[n:], keys)
    assert bytes_of(child.usage[:, :n]) == bytes_of(parent.usage)
    assert not child.usage[:, n:].any()
    assert bytes_of(child.context) == bytes_of(parent.context)
    for name in SHAPES:
        for part, was in ((child.down[name], parent.down[name]), (child.up[name], parent.up[name])):
            assert bytes_of(part[:, :n]) == bytes_of(was)
            assert bytes_of(part[:, n:]) == bytes_of(was[:, rows])


def test_with_rows_touches_only_the_named_rows() -> None:
    parent = make_state()
    own = parent.rows_of("task1")
    new = {name: torch.randn(3, 3, 2, size[1]) for name, size in SHAPES.items()}
    child = parent.with_rows(own, down=new)
    for name in SHAPES:
        assert torch.equal(child.down[name][:, own], new[name])
        assert bytes_of(child.down[name][:, :3]) == bytes_of(parent.down[name][:, :3])
    assert child.up is parent.up
    assert not torch.equal(child.down["o_proj"], parent.down["o_proj"])


def test_i7_save_and_load_is_byte_exact(tmp_path: Path) -> None:
    state = make_state().with_routing(mode="text+image", tau=0.25)
    state.save(tmp_path / "a")
    loaded = AdapterState.load(tmp_path / "a", base_digest="digest-a")
    loaded.save(tmp_path / "b")
    for name in ("state.safetensors", "state.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for name, tensor in state.tensors().items():
        assert bytes_of(loaded.tensors()[name]) == bytes_of(tensor), name
    assert loaded.routing == state.routing
    assert loaded.tasks == state.tasks


def test_i7_a_state_of_another_base_is_refused(tmp_path: Path) -> None:
    make_state().save(tmp_path)
    with pytest.raises(BaseMismatch, match="digest-b"):
        AdapterState.load(tmp_path, base_digest="digest-b")
    assert AdapterState.load(tmp_path, base_digest=None).base_digest == "digest-a"


def test_unknown_task_and_bad_names() -> None:
    state = make_state()
    with pytest.raises(NotFoundError, match="task0, task1"):
        state.rows_of("nope")
    with pytest.raises(InputError, match="not allowed"):
        state.expand("../etc")
    with pytest.raises(StateInvalid, match="already"):
        state.expand("task0")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("keys", lambda x: x * 2, "not unit"),
        ("keys", lambda x: x.fill_(math.nan), "NaN"),
        ("up.o_proj", lambda x: x.fill_(math.inf), "NaN or infinite"),
        ("context", lambda x: x + 1, "triangular"),
        ("usage", lambda x: x - 5, "negative"),
        ("task_of", lambda x: x + 7, "outside"),
        ("centroid_task", lambda x: x - 9, "outside"),
    ],
)
def test_bad_values_in_a_file_are_refused(tmp_path: Path, name: str, change, message: str) -> None:
    make_state().save(tmp_path)
    tensors = load_file(tmp_path / "state.safetensors")
    tensors[name] = change(tensors[name].clone())
    save_file(tensors, tmp_path / "state.safetensors")
    with pytest.raises(StateInvalid, match=message):
        AdapterState.load(tmp_path, base_digest="digest-a")


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "state.safetensors")
    change(tensors)
    save_file(tensors, folder / "state.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(extra=torch.zeros(4)),
        lambda t: t.pop("usage"),
        lambda t: t.update({"down.o_proj": t["down.o_proj"][:, :2].contiguous()}),
        lambda t: t.update({"down.o_proj": t["down.o_proj"].transpose(2, 3).contiguous()}),
        lambda t: t.update(keys=t["keys"].half()),
        lambda t: t.update(task_of=t["task_of"].float()),
        lambda t: t.update({"up.k_proj": t.pop("up.q_proj")}),
    ],
    ids=["extra", "missing", "fewer-rows", "transposed", "half", "float-index", "renamed"],
)
def test_wrong_tensors_in_a_file_are_refused(tmp_path: Path, change) -> None:
    make_state().save(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(StateInvalid, match=r"state\.safetensors"):
        AdapterState.load(tmp_path, base_digest="digest-a")


def test_a_pickle_under_the_tensors_name_is_refused_and_not_run(tmp_path: Path) -> None:
    make_state().save(tmp_path)
    touched = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (touched,))

    (tmp_path / "state.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(StateInvalid, match="pickle"):
        AdapterState.load(tmp_path, base_digest="digest-a")
    torch.save({"a": torch.zeros(2)}, tmp_path / "state.safetensors")
    with pytest.raises(StateInvalid, match="pickle or a zip"):
        AdapterState.load(tmp_path, base_digest="digest-a")
    assert not touched.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        (2**63).to_bytes(8, "little") + b"{}",
        (2**40).to_bytes(8, "little") + b"{}" * 100,
        (10).to_bytes(8, "little") + b"not json!!",
        (6).to_bytes(8, "little") + b"[1, 2]",
        (2**16).to_bytes(8, "little") + b"[" * 2**16,
    ],
    ids=["empty", "short", "header-2^63", "header-2^40", "not-json", "list", "deep"],
)
def test_header_abuse_is_refused(tmp_path: Path, content: bytes) -> None:
    make_state().save(tmp_path)
    (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(StateInvalid, match=r"state\.safetensors"):
        AdapterState.load(tmp_path, base_digest="digest-a")


def test_offsets_that_do_not_fit_their_tensors_are_refused(tmp_path: Path) -> None:
    make_state().save(tmp_path)
    path = tmp_path / "state.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    one, two = header["down.o_proj"], header["down.q_proj"]
    one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]
    packed = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(packed) == length
    path.write_bytes(data[:8] + packed + data[8 + length :])
    with pytest.raises(StateInvalid, match="damaged"):
        AdapterState.load(tmp_path, base_digest="digest-a")


def test_a_cut_off_file_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    make_state().save(tmp_path)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StateInvalid, match="cut off"):
        AdapterState.load(tmp_path, base_digest="digest-a")
    path.unlink()
    with pytest.raises(StateInvalid, match="cannot be read"):
        AdapterState.load(tmp_path, base_digest="digest-a")


@pytest.mark.parametrize("missing", ["state.json", "state.safetensors"])
def test_a_fault_of_the_process_says_nothing_about_the_state(tmp_path: Path, missing: str) -> None:
    make_state().save(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            AdapterState.load(tmp_path, base_digest="digest-a")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert AdapterState.load(tmp_path, base_digest="digest-a").tasks == make_state().tasks
    (tmp_path / missing).unlink()
    (tmp_path / missing).mkdir()
    with pytest.raises(StateInvalid, match=f"{missing} cannot be read"):
        AdapterState.load(tmp_path, base_digest="digest-a")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 10**9),
        ("rank", 0),
        ("rows", -1),
        ("rows", 60000),
        ("rows", 2.5),
        ("query_width", "12"),
        ("format", 99),
        ("span", "some"),
        ("tasks", ["../x", "b"]),
        ("tasks", ["same", "same"]),
        ("shapes", {}),
        ("shapes", {"o_proj": {"layers": 1000, "d_in": 10**6, "d_out": 10**6}}),
        ("routing", {"mode": "text", "top_m": 0, "tau": 0.0, "text_weight": 1.0, "image_weight": 0.0}),
        ("routing", {"mode": "telepathy", "top_m": 4, "tau": 0.0, "text_weight": 1.0, "image_weight": 0.0}),
        ("surprise", 1),
    ],
)
def test_bad_records_are_refused(tmp_path: Path, field: str, value: object) -> None:
    make_state().save(tmp_path)
    path = tmp_path / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(StateInvalid):
        AdapterState.load(tmp_path, base_digest="digest-a")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\x00", '{"base_digest": NaN}'])
def test_a_record_that_is_not_one_is_refused(tmp_path: Path, text: str) -> None:
    make_state().save(tmp_path)
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(StateInvalid, match=r"state\.json"):
        AdapterState.load(tmp_path, base_digest="digest-a")


def test_routing_settings_check_their_values() -> None:
    for bad in (
        {"top_m": 0},
        {"tau": math.nan},
        {"text_weight": -1.0},
        {"text_weight": 0.0, "image_weight": 0.0},
    ):
        with pytest.raises(StateInvalid):
            RoutingSettings(**bad)  # pyright: ignore[reportArgumentType]
