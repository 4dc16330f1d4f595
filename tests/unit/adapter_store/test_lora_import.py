"""A LoRA that PEFT made becomes increments with the same outputs; what cannot is refused in words."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor

import adapter_store.lora.reading as reading
from adapter_store.base.load import Base
from adapter_store.datasets.records import FaultList
from adapter_store.errors import LoraError, NotFoundError, StoreError
from adapter_store.increments import Bank, Increments, Term, attach, gate_of
from adapter_store.lora import ABOUT_FILE, CONFIG_FILE, TENSORS_FILE
from adapter_store.lora.export import Origin, lora_files
from adapter_store.lora.reading import Lineage, examine, filled
from adapter_store.lora.store import LoraStore, refuse
from adapter_store.routing import coefficients, intrinsic
from adapter_store.state import AdapterState, RoutingSettings
from tests.lora_folders import peft_folder, peft_model, with_config, with_tensors, write, zipped

IDS = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(0))
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
O_PROJ = r".*language_model.*\.o_proj"
FIRST = "base_model.model.model.language_model.layers.0.self_attn.o_proj.lora_A.weight"


@pytest.fixture
def increments(loaded_tiny_base: Base) -> Iterator[Increments]:
    handle = attach(loaded_tiny_base.model, ("o_proj",))
    yield handle
    if handle.attached:
        handle.detach()


def known_state(base: Base, increments: Increments, *, rank: int = 4, top_m: int = 2) -> AdapterState:
    """Return a state that knows the task ``digits``, whose increments do something."""
    routing = RoutingSettings("text", top_m=top_m)
    generator = torch.Generator().manual_seed(5)
    state = AdapterState.empty(base.digest, increments.shapes, 6, rank=rank, span="all", routing=routing)
    state = state.expand("digits", 2, generator)
    up = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in state.up.items()}
    state = state.with_rows([0, 1], up=up)
    return state.with_usage(
        "digits", intrinsic(state, state.keys[:2, 0], among=state.rows_of("digits")).mean(dim=0)
    )


def expanded(state: AdapterState, key: Tensor) -> AdapterState:
    """Open the task ``birds`` as an import does: M rows, one key, no part in earlier tasks."""
    m = state.routing.top_m
    state = state.expand("birds", m, torch.Generator().manual_seed(6), context_logit=-30.0)
    rows = state.rows_of("birds")
    state = state.with_rows(rows, keys=torch.nn.functional.normalize(key, dim=-1).expand(m, -1))
    return state.with_usage("birds", intrinsic(state, state.keys[rows, 0], among=rows).mean(dim=0))


def served_logits(base: Base, increments: Increments, state: AdapterState, query: Tensor) -> Tensor:
    c = coefficients(state, query).expand(len(IDS), -1)
    term = Term(Bank.from_state(state), gate_of(c, state.rank)[:, None])
    with torch.inference_mode(), increments.active([term]):
        return base.model(input_ids=IDS).logits.clone()


def sound(folder: Path, lineage: Lineage) -> reading.Lora:
    faults = FaultList(100)
    lora = examine(folder, faults, lineage, "birds")
    assert faults.faults == []
    assert lora is not None
    return lora


def test_an_export_at_the_limit_comes_back_and_one_above_is_refused_as_it_said(
    loaded_tiny_base: Base, increments: Increments, tmp_path: Path
):
    base = loaded_tiny_base
    state = known_state(base, increments)
    state = state.expand("more", 2, torch.Generator().manual_seed(7))
    up = {name: torch.randn(t[:, 2:].shape) for name, t in state.up.items()}
    state = state.with_rows([2, 3], up=up)
    lineage = Lineage.of(increments.paths, increments.shapes, state)
    about = Origin(base.base_id, base.digest, "v1", "more", None)
    key = torch.tensor([[1.0, -2.0, 0.5, 0.0, 1.0, 3.0]])
    at_limit = torch.tensor([0.5, 0.0, 0.5, 0.0])
    files = lora_files(state, at_limit, increments.paths, about)
    lora = sound(write(files, tmp_path / "whole"), lineage)
    assert lora.rank == state.rank * state.routing.top_m
    again = filled(expanded(state, key), "birds", lora, lineage)
    term = Term(Bank.from_state(state), gate_of(at_limit, state.rank).expand(len(IDS), -1)[:, None])
    with torch.inference_mode(), increments.active([term]):
        wanted = base.model(input_ids=IDS).logits.clone()
    torch.testing.assert_close(served_logits(base, increments, again, key), wanted, **CLOSE)
    above = lora_files(state, torch.tensor([0.5, 0.0, 0.5, 0.5]), increments.paths, about)
    note = json.loads(above[ABOUT_FILE])["notes"][-1]
    faults = FaultList(100)
    assert examine(write(above, tmp_path / "above"), faults, lineage, "birds") is None
    assert note.partition(": ")[2].rstrip(".") in faults.faults[0].reason


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"r": 8, "lora_alpha": 32},
        {"r": 5, "use_rslora": True},
        {"r": 1, "layers_to_transform": [1, 2], "layers_pattern": "layers", "target_modules": ["o_proj"]},
        {"r": 3, "lora_dropout": 0.1, "init_lora_weights": "gaussian"},
    ],
    ids=["plain", "whole room", "rslora", "two layers", "dropout"],
)
def test_an_imported_lora_answers_as_under_peft(
    loaded_tiny_base: Base, increments: Increments, tmp_path: Path, config: dict[str, Any]
):
    base = loaded_tiny_base
    before = known_state(base, increments)
    lineage = Lineage.of(increments.paths, increments.shapes, before)
    increments.detach()
    folder = peft_folder(base, tmp_path / "lora", **config)
    with torch.inference_mode():
        wanted = peft_model(base, folder)(input_ids=IDS).logits
    key = torch.tensor([[1.0, -2.0, 0.5, 0.0, 1.0, 3.0]])
    state = filled(expanded(before, key), "birds", sound(folder, lineage), lineage)
    handle = attach(base.model, ("o_proj",))
    try:
        found = served_logits(base, handle, state, key)
        with torch.inference_mode():
            plain = base.model(input_ids=IDS).logits
    finally:
        handle.detach()
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert not torch.allclose(found, plain, **CLOSE)
    old = before.rows_of("digits")
    assert state.up["o_proj"][:, old].equal(before.up["o_proj"])


def test_half_precision_and_older_paths_are_read(
    loaded_tiny_base: Base, increments: Increments, tmp_path: Path
):
    lineage = Lineage.of(increments.paths, increments.shapes, None)
    increments.detach()
    folder = peft_folder(loaded_tiny_base, tmp_path / "lora")
    plain = sound(folder, lineage).factors()

    def older(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name.replace("model.language_model.", "language_model.model."): tensor.half()
            for name, tensor in tensors.items()
        }

    found = sound(with_tensors(folder, older), lineage).factors()
    assert found.keys() == plain.keys()
    for path, (a, b) in found.items():
        torch.testing.assert_close((a, b), plain[path], rtol=1e-3, atol=1e-3)


def delta(state: AdapterState, c: Tensor) -> Tensor:
    """Return sum c_n B_n A_n of the output projections ``[layers, d_out, d_in]``."""
    return torch.einsum("n,lnor,lnri->loi", c, state.up["o_proj"], state.down["o_proj"])


def test_exported_and_imported_again_it_is_the_same(
    loaded_tiny_base: Base, increments: Increments, tmp_path: Path
):
    base = loaded_tiny_base
    state = known_state(base, increments)
    lineage = Lineage.of(increments.paths, increments.shapes, state)
    origin = Origin(base.base_id, base.digest, "v1", "digits", None)
    c = torch.tensor([0.75, 0.5])
    folder = write(lora_files(state, c, increments.paths, origin), tmp_path / "first")
    key = torch.tensor([[0.0, 1.0, 0.0, 0.0, -1.0, 0.0]])
    again = filled(expanded(state, key), "birds", sound(folder, lineage), lineage)
    served = coefficients(again, key)[0]
    torch.testing.assert_close(delta(again, served), delta(state, c), rtol=1e-5, atol=1e-6)
    folder = write(lora_files(again, served, increments.paths, origin), tmp_path / "second")
    assert json.loads((folder / ABOUT_FILE).read_text())["rank"] == 8  # nothing of the task before is in it
    products = [b @ a for a, b in sound(folder, lineage).factors().values()]
    torch.testing.assert_close(torch.stack(products), delta(state, c), rtol=1e-5, atol=1e-6)


def with_name(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def plus(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {**tensors, name: tensor}


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "type IA3; only LORA"),
    ({"use_dora": True}, "use_dora: DoRA scales"),
    ({"bias": "lora_only"}, "bias: biases cannot"),
    ({"lora_bias": True}, "lora_bias: biases cannot"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save: whole modules"),
    ({"alpha_pattern": {"o_proj": 3}}, "alpha_pattern: all linears need one alpha"),
    ({"rank_pattern": {"o_proj": 3}}, "rank_pattern: all linears need one rank"),
    ({"trainable_token_indices": [1]}, "embedding layers are not adapted"),
    ({"layer_replication": [[0, 2]]}, "layer_replication: it makes more of the adapter"),
    ({"init_lora_weights": "pissa"}, "'pissa' changes the base's own weights"),
    ({"r": 0}, "r: the rank must be"),
    ({"r": "4"}, "r: the rank must be"),
    ({"r": 9}, "rank 9 is too large: 2 increments of rank 4 answer a request, 8 together"),
    ({"r": 9}, "a lineage that begins with --rank 5 has room for it"),
    ({"lora_alpha": 10**400}, "lora_alpha: it must be a number"),
    ({"lora_alpha": float("nan")}, "lora_alpha: it must be a number"),
    ({"r": 3}, "its shape is [4, 64], expected [3, 64]"),
]  # fmt: skip
TENSORS: list[tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = [
    (with_name("o_proj", "q_proj"), "model.language_model.layers.*.self_attn.q_proj (layers 0, 1, 2): not"),
    (with_name("o_proj", "q_proj"), "adapts model.language_model.layers.*.self_attn.o_proj (layers 0, 1, 2)"),
    (with_name("layers.2.", "layers.7."), "o_proj (layers 7): not adapted"),
    (with_name("language_model", "vision_tower"), "model.vision_tower.layers.*.self_attn.o_proj"),
    (with_name("lora_A", "lora_C"), "lora_A or lora_B is missing"),
    (plus("base_model.model.model.language_model.embed_tokens.weight", torch.ones(2)), "embedding layers"),
    (plus("base_model.model.lm_head.weight", torch.ones(2)), "embedding layers"),
    (plus(FIRST.replace("lora_A.weight", "lora_magnitude_vector"), torch.ones(2)), "DoRA's magnitudes"),
    (plus(FIRST.replace("lora_A.weight", "lora_B.bias"), torch.ones(2)), "biases cannot"),
    (plus("surprise", torch.ones(2)), "surprise: this tensor is no lora_A or lora_B"),
    (plus(FIRST, torch.full((4, 64), torch.nan)), "NaN or infinite"),
    (plus(FIRST, torch.full((4, 64), 1e300, dtype=torch.float64)), "NaN or infinite"),
    (plus(FIRST, torch.ones(4, 64, dtype=torch.int32)), "numbers are of type I32"),
    (plus(FIRST, torch.ones(4, 63)), "its shape is [4, 63], expected [4, 64]"),
    (plus(FIRST, torch.ones(64)), "its shape is [64], expected [4, 64]"),
    (plus(FIRST.replace("model.language_model.", "language_model.model."), torch.ones(4, 64)), "keep one"),
    (lambda _: {}, "holds no lora_A and lora_B"),
]  # fmt: skip


@pytest.fixture(scope="module")
def lineage(loaded_tiny_base: Base) -> Lineage:
    handle = attach(loaded_tiny_base.model, ("o_proj",))
    handle.detach()
    return Lineage.of(handle.paths, handle.shapes, known_state(loaded_tiny_base, handle))


@pytest.fixture
def folder(loaded_tiny_base: Base, tmp_path: Path) -> Path:
    return peft_folder(loaded_tiny_base, tmp_path / "lora", target_modules=O_PROJ)


def refused(folder: Path, lineage: Lineage | None, task: str = "birds") -> str:
    faults = FaultList(100)
    assert examine(folder, faults, lineage, task) is None
    with pytest.raises(LoraError, match="the LoRA cannot be imported: ") as caught:
        refuse(faults)
    assert len(caught.value.report.faults) == len(faults)
    return caught.value.message


@pytest.mark.parametrize(("changes", "said"), CONFIGS, ids=lambda value: str(value)[:40])
def test_what_is_more_than_a_plain_lora_is_refused(
    folder: Path, lineage: Lineage, changes: dict[str, Any], said: str
):
    assert said in refused(with_config(folder, **changes), lineage)


@pytest.mark.parametrize(("change", "said"), TENSORS, ids=[said[:40] for _, said in TENSORS])
def test_tensors_that_do_not_fit_are_refused(
    folder: Path, lineage: Lineage, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str
):
    assert said in refused(with_tensors(folder, change), lineage)


def test_every_fault_is_in_one_message(folder: Path, lineage: Lineage):
    with_config(folder, use_dora=True, bias="all", r=64)
    with_tensors(folder, with_name("layers.2.self_attn.o_proj", "layers.2.mlp.up_proj"))
    message = refused(folder, lineage, task="digits")
    for said in (
        "'digits' exists already",
        "DoRA",
        "biases",
        "--rank 32",
        "mlp.up_proj (layers 2)",
        "[64, 64]",
    ):
        assert said in message


def test_files_that_are_missing_or_no_lora_are_refused(
    folder: Path, lineage: Lineage, monkeypatch: pytest.MonkeyPatch
):
    content = (folder / TENSORS_FILE).read_bytes()
    broken = {
        "the file is cut off": (b"", content[:8], b"PK\x03\x04" + bytes(8)),
        "damaged or no safetensors": (content[:-4], content + b"x", (2).to_bytes(8, "little") + b"[]"),
        "at most 1048576 are read": ((2**20 + 1).to_bytes(8, "little") + bytes(2**20 + 1),),
    }
    for said, contents in broken.items():
        for data in contents:
            (folder / TENSORS_FILE).write_bytes(data)
            assert said in refused(folder, lineage)
    for data in (b"", b"[1]", b"{", b"[" * 100_000, b"\xff"):
        (folder / CONFIG_FILE).write_bytes(data)
        assert "adapter_config.json: the file is not a JSON object" in refused(folder, lineage)
    (folder / CONFIG_FILE).write_bytes(b" " * (2**20 + 1))
    assert "at most 1048576 are read" in refused(folder, lineage)
    (folder / CONFIG_FILE).unlink()
    (folder / TENSORS_FILE).unlink()
    message = refused(folder, lineage)
    assert message.count("the file is missing") == 2
    monkeypatch.setattr(reading, "MAX_TENSORS_BYTES", 100)
    (folder / TENSORS_FILE).write_bytes(content)
    assert "at most 100 are accepted" in refused(folder, lineage)


def test_without_a_lineage_only_the_files_themselves_are_checked(folder: Path, lineage: Lineage):
    faults = FaultList(10)
    with_config(with_tensors(folder, with_name("o_proj", "q_proj")), r=4)
    assert examine(folder, faults, None) is not None
    untaught = Lineage(lineage.paths, lineage.shapes)
    assert "not adapted here" in refused(folder, untaught)


def test_a_lora_is_kept_once_under_its_content(folder: Path, lineage: Lineage, tmp_path: Path):
    store = LoraStore(tmp_path / "loras")
    archives = {"a": zipped(folder), "b": zipped(folder, under="deep/er/", only=(CONFIG_FILE, TENSORS_FILE))}
    ids = set()
    for name, content in archives.items():
        (tmp_path / name).write_bytes(content)
        ids.add(store.put(tmp_path / name, tmp_path / f"work-{name}", lineage=lineage, task="birds"))
    with tarfile.open(tmp_path / "c", "w:gz") as archive:
        archive.add(folder, "lora")
    ids.add(store.put(tmp_path / "c", tmp_path / "work-c", lineage=lineage))
    assert len(ids) == 1
    kept = store.open(ids.pop())
    assert sorted(path.name for path in kept.iterdir()) == [CONFIG_FILE, TENSORS_FILE]
    (kept / CONFIG_FILE).write_text("{}")
    with pytest.raises(StoreError, match="damaged"):
        store.open(kept.name)
    store.put(tmp_path / "a", tmp_path / "work-again", lineage=lineage)
    assert store.open(kept.name) == kept
    for unknown in ("lora-" + "0" * 64, "../etc", "lora-x"):
        with pytest.raises(NotFoundError, match="no stored LoRA"):
            store.open(unknown)


def test_archives_from_strangers_are_not_trusted(folder: Path, lineage: Lineage, tmp_path: Path):
    store = LoraStore(tmp_path / "loras")
    torch.save({"x": torch.ones(1)}, folder / "adapter_model.bin")
    (folder / "training_args.pt").write_bytes(b"\x80\x02.")
    uploads = {
        "no archive; send a zip": dump_tensors({"a": torch.ones(1)}),
        "adapter_model.bin, file: a pickle can run code": zipped(folder),
        "training_args.pt, file: a pickle can run code": zipped(folder),
        "the path leaves the archive": zipped(folder, under="../"),
        "the file is missing": zipped(folder, only=("README.md",)),
        "the zip archive is cut off": zipped(folder)[:200],
    }
    for number, (said, content) in enumerate(uploads.items()):
        (tmp_path / "upload").write_bytes(content)
        with pytest.raises(LoraError) as caught:
            store.put(tmp_path / "upload", tmp_path / f"work-{number}", lineage=lineage)
        assert said in caught.value.message
        assert "cut off" not in said or "pack it beside" not in caught.value.message
    assert not store.root.exists()
