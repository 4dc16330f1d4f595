"""A LoRA that PEFT made becomes increments with the same outputs; what cannot become them is refused in words."""

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
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
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
    return state.with_usage("digits", intrinsic(state, state.keys[:2], only_task="digits").mean(dim=0))


def expanded(state: AdapterState, key: Tensor) -> AdapterState:
    """Open the task ``birds`` as an import does: M rows, one key, no part in earlier tasks."""
    m = state.routing.top_m
    state = state.expand("birds", m, torch.Generator().manual_seed(6), context_logit=-30.0)
    rows = state.rows_of("birds")
    state = state.with_rows(rows, keys=torch.nn.functional.normalize(key, dim=-1).expand(m, -1))
    return state.with_usage("birds", intrinsic(state, state.keys[rows], only_task="birds").mean(dim=0))


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


def test_exported_and_imported_again_it_is_the_same(
    loaded_tiny_base: Base, increments: Increments, tmp_path: Path
):
    base = loaded_tiny_base
    state = known_state(base, increments)
    lineage = Lineage.of(increments.paths, increments.shapes, state)
    c = torch.tensor([0.75, 0.5])
    origin = Origin(base.base_id, base.digest, "v1", "digits", None)
    folder = write(lora_files(state, c, increments.paths, origin), tmp_path / "lora")
    key = torch.tensor([[0.0, 1.0, 0.0, 0.0, -1.0, 0.0]])
    again = filled(expanded(state, key), "birds", sound(folder, lineage), lineage)
    served = coefficients(again, key)[0]
    for before, now, what in (
        (state, again, "first"),
        (again, _round(base, again, served, increments, tmp_path, key), "second"),
    ):
        rows = slice(None) if what == "first" else before.rows_of("birds")
        given = c if what == "first" else served[rows]
        wanted = torch.einsum("n,lnor,lnri->loi", given, before.up["o_proj"][:, rows], before.down["o_proj"][:, rows])
        mine = coefficients(now, key)[0] if what == "first" else torch.full((2,), 0.5)
        new = now.rows_of("birds")
        found = torch.einsum(
            "n,lnor,lnri->loi", mine[new] if what == "first" else mine, now.up["o_proj"][:, new], now.down["o_proj"][:, new]
        )
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
