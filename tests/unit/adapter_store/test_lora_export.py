"""What is exported gives, loaded by PEFT, the outputs of the increments' own path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapter_store.base.load import Base
from adapter_store.errors import InputError, NotFoundError
from adapter_store.increments import Bank, Increments, Term, attach, gate_of
from adapter_store.lora import ABOUT_FILE, CONFIG_FILE, README_FILE, TENSORS_FILE
from adapter_store.lora.export import Origin, lora_files, packed, task_coefficients
from adapter_store.lora.paths import described, pattern_of
from adapter_store.routing import coefficients, intrinsic
from adapter_store.state import AdapterState, RoutingSettings, Span
from tests.lora_folders import peft_model, write

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
BEHIND = torch.randint(5, 300, (1, 8), generator=torch.Generator().manual_seed(0))


def prompt(base: Base) -> tuple[Tensor, Tensor]:
    """Return token ids ``[1, 14]`` up to and behind a picture of four tokens, and its pixels."""
    prefix = torch.tensor([[7, 8, *[base.image_token_id] * 4]])
    pixels = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    return prefix, pixels


def make_state(base: Base, increments: Increments, span: Span, rows: int = 3, top_m: int = 2) -> AdapterState:
    """Return a state of two tasks, the second of which uses the first by its context."""
    generator = torch.Generator().manual_seed(3)
    routing = RoutingSettings("text", top_m=top_m)
    state = AdapterState.empty(base.digest, increments.shapes, 6, rank=2, span=span, routing=routing)
    for task in ("digits", "animals"):
        state = state.expand(task, rows, generator, context_logit=0.4)
        own = state.rows_of(task)
        up = {
            name: 0.3 * torch.randn(tensor[:, own].shape, generator=generator)
            for name, tensor in state.up.items()
        }
        keys = state.keys[own[:1], 0].expand(rows, -1) if rows == top_m else state.keys[own, 0]
        state = state.with_rows(own, keys=keys, up=up)
        usage = intrinsic(state, state.keys[own, 0], among=own).mean(dim=0)
        state = state.with_usage(task, usage)
    return state


@pytest.fixture(params=[(("o_proj",), 0.34), (ALL, 0.0)], ids=["o_proj of two layers", "all of all"])
def increments(loaded_tiny_base: Base, request: pytest.FixtureRequest) -> Iterator[Increments]:
    handle = attach(loaded_tiny_base.model, *request.param)
    yield handle
    if handle.attached:
        handle.detach()


def own_logits(base: Base, increments: Increments, state: AdapterState, c: Tensor) -> Tensor:
    """Run the whole prompt with the increments, gated as the state's span says: ``[14, vocabulary]``."""
    prefix, pixels = prompt(base)
    ids = torch.cat([prefix, BEHIND], dim=1)
    gate = gate_of(c, state.rank)[None, None].repeat(1, ids.shape[1], 1)
    if state.span == "after_image":
        gate[:, : prefix.shape[1]] = 0
    with torch.inference_mode(), increments.active([Term(Bank.from_state(state), gate)]):
        return base.model(input_ids=ids, pixel_values=pixels).logits[0].clone()


def origin(base: Base, **more: object) -> Origin:
    known = {"base": base.base_id, "base_digest": base.digest, "version": "v2", "task": "animals"}
    return Origin(**{**known, "question": None, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("of", ["task", "request"])
def test_with_span_all_peft_gives_the_same_logits_everywhere(
    loaded_tiny_base: Base, increments: Increments, tmp_path: Path, of: str
):
    base = loaded_tiny_base
    state = make_state(base, increments, "all")
    query = torch.nn.functional.normalize(state.keys[4:5, 0] + 0.1, dim=-1)
    c = task_coefficients(state, "animals")[0] if of == "task" else coefficients(state, query)[0]
    assert bool(c[:3].any())  # the context takes part
    wanted = own_logits(base, increments, state, c)
    plain = own_logits(base, increments, state, torch.zeros_like(c))
    folder = write(lora_files(state, c, increments.paths, origin(base)), tmp_path / "lora")
    increments.detach()
    model = peft_model(base, folder)
    prefix, pixels = prompt(base)
    with torch.inference_mode():
        found = model(input_ids=torch.cat([prefix, BEHIND], dim=1), pixel_values=pixels).logits[0]
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert not torch.allclose(wanted, plain, **CLOSE)
    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert adapted == {path for group in increments.paths.values() for path in group}
    assert all(path.startswith("model.language_model.layers.") for path in adapted)


def test_behind_the_picture_outputs_are_equal_given_the_bases_own_prefix(
    loaded_tiny_base: Base, increments: Increments, tmp_path: Path
):
    base = loaded_tiny_base
    state = make_state(base, increments, "after_image")
    c = coefficients(state, state.keys[4:5, 0])[0]
    prefix, pixels = prompt(base)
    wanted = own_logits(base, increments, state, c)[prefix.shape[1] :]
    folder = write(lora_files(state, c, increments.paths, origin(base)), tmp_path / "lora")
    increments.detach()
    model = peft_model(base, folder)
    with torch.inference_mode():
        with model.disable_adapter():
            kept = model(input_ids=prefix, pixel_values=pixels, use_cache=True).past_key_values
        found = model(input_ids=BEHIND, past_key_values=kept).logits[0]
        whole = model(input_ids=torch.cat([prefix, BEHIND], dim=1), pixel_values=pixels).logits[0]
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert not torch.allclose(whole[prefix.shape[1] :], wanted, **CLOSE)
    about = json.loads((folder / ABOUT_FILE).read_text())
    assert about["span"] == "after_image"
    assert "tokens after the picture" in about["notes"][0]
    assert about["notes"][0] in (folder / README_FILE).read_text()


@pytest.fixture
def on_o_proj(loaded_tiny_base: Base) -> Iterator[Increments]:
    handle = attach(loaded_tiny_base.model, ("o_proj",))
    yield handle
    handle.detach()


def test_only_rows_that_take_part_are_stacked(loaded_tiny_base: Base, on_o_proj: Increments):
    state = make_state(loaded_tiny_base, on_o_proj, "all")
    c = torch.tensor([0.0, 0.5, 1e-13, 0.0, 0.0, 0.25])
    files = lora_files(state, c, on_o_proj.paths, origin(loaded_tiny_base))
    config, about = json.loads(files[CONFIG_FILE]), json.loads(files[ABOUT_FILE])
    assert (config["r"], config["lora_alpha"], about["rank"]) == (4, 4, 4)
    assert not any("import" in note for note in about["notes"])  # rank 4 = two of rank 2
    assert packed(files) == packed(dict(files))
    assert set(files) == {CONFIG_FILE, TENSORS_FILE, README_FILE, ABOUT_FILE}


def test_what_an_import_has_no_room_for_is_told(loaded_tiny_base: Base, on_o_proj: Increments):
    state = make_state(loaded_tiny_base, on_o_proj, "all")
    c = torch.tensor([0.5, 0.5, 0.1, 0.0, 0.0, 0.25])
    files = lora_files(state, c, on_o_proj.paths, origin(loaded_tiny_base))
    note = json.loads(files[ABOUT_FILE])["notes"][-1]
    assert note.startswith("Rank 8 is more than an import into this lineage takes: 2 increments of rank 2")
    assert "begins with --rank 4 has room" in note
    assert note in files[README_FILE].decode()


def test_what_the_base_answers_is_refused(loaded_tiny_base: Base, on_o_proj: Increments):
    state = make_state(loaded_tiny_base, on_o_proj, "all")
    for c in (torch.zeros(state.rows), torch.zeros(0)):
        with pytest.raises(InputError, match="plain base answers this request"):
            lora_files(state, c, on_o_proj.paths, origin(loaded_tiny_base))
    with pytest.raises(NotFoundError, match="birds"):
        task_coefficients(state, "birds")
    silent = state.with_usage("digits", torch.zeros(state.rows))
    with pytest.raises(InputError, match="no usage"):
        task_coefficients(silent, "digits")


def test_a_task_is_exact_where_all_its_increments_answer_each_question(
    loaded_tiny_base: Base, on_o_proj: Increments
):
    exact = make_state(loaded_tiny_base, on_o_proj, "all", rows=2, top_m=2)
    c, same = task_coefficients(exact, "digits")
    assert same
    torch.testing.assert_close(c, coefficients(exact, exact.keys[:1, 0], among=exact.rows_of("digits"))[0])
    mean = make_state(loaded_tiny_base, on_o_proj, "all", rows=3, top_m=2)
    c, same = task_coefficients(mean, "digits")
    assert not same
    files = lora_files(mean, c, on_o_proj.paths, origin(loaded_tiny_base, exact=same))
    assert any("mean over the task's questions" in note for note in json.loads(files[ABOUT_FILE])["notes"])


def test_a_pattern_names_exactly_its_paths():
    paths = ["model.language_model.layers.2.self_attn.o_proj", "model.language_model.layers.11.mlp.up_proj"]
    pattern = pattern_of([*paths, "lm.head"])
    for path in (*paths, "lm.head"):
        assert re.fullmatch(pattern, path)
    for other in (paths[0].replace(".2.", ".1."), "x." + paths[0], paths[1] + ".x", "lmxhead"):
        assert not re.fullmatch(pattern, other)
    assert described(paths).startswith("model.language_model.layers.*.self_attn.o_proj (layers 2); ")


def test_a_task_with_branches_is_exported_question_by_question(
    loaded_tiny_base: Base, increments: Increments
) -> None:
    state = make_state(loaded_tiny_base, increments, "all")
    rows = state.rows_of("digits")
    branched = state.branch("digits", rows, state.keys[rows].flip(-1))
    with pytest.raises(InputError, match="learned in 2 shapes"):
        task_coefficients(branched, "digits")
