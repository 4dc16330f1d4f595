"""A LoRA goes through the whole job: expanded, measured, gated, published, served as PEFT would run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapter_store.base.load import Base
from adapter_store.increments import Bank, Term, attach, gate_of
from adapter_store.jobs import Job, JobStatus
from adapter_store.lora import TENSORS_FILE
from adapter_store.lora.export import lora_tensors, task_coefficients
from adapter_store.lora.store import LoraStore
from adapter_store.routing import coefficients
from adapter_store.state import AdapterState
from tests.integration.working import Site
from tests.lora_folders import peft_folder, peft_model, zipped

IDS = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(0))
Submit = Callable[..., Job]


@pytest.fixture
def lora(loaded_tiny_base: Base, tmp_path: Path) -> Path:
    return peft_folder(loaded_tiny_base, tmp_path / "peft", r=5, lora_alpha=7, use_rslora=True)


@pytest.fixture
def import_lora(site: Site, lora: Path, tmp_path: Path) -> Submit:
    """Return what queues an import of the LoRA, with the pictures of a batch."""

    def submit(task: str, question: str = "Which shade?", folder: Path = lora) -> Job:
        archive = tmp_path / f"{task}.zip"
        archive.write_bytes(zipped(folder))
        stored = LoraStore(site.home / "loras").put(archive, tmp_path / f"work-{task}", lineage=None)
        batch = site.submit(task, question)
        site.queue.cancel(batch.id)
        return site.queue.submit(Job(lineage="strata", task=task, dataset=batch.dataset, adapter=stored))

    return submit


def teach_colors(site: Site) -> None:
    """Make ``stable`` a version that knows ``colors``, whatever the gate thinks of so few pictures."""
    assert site.finish(site.submit("colors")).result_version == "v1"
    site.versions.aliases.move("stable", "v1", expected_revision=None, reason="for the test", actor="test")


def test_an_imported_task_answers_as_under_peft_and_leaves_the_others_alone(
    site: Site, loaded_tiny_base: Base, lora: Path, import_lora: Submit
):
    teach_colors(site)
    job = site.finish(import_lora("shades"))
    assert (job.status, job.decision, job.result_version) == (JobStatus.SUCCEEDED, "expand", "v2"), job
    manifest = site.versions.manifest("v2")
    assert manifest.settings["imported"] == job.adapter
    assert (manifest.settings["steps"], manifest.settings["final_loss"]) == (0, None)
    assert manifest.accuracy.tasks == ("colors", "shades")
    assert manifest.gate is not None
    assert manifest.probe is not None
    before, state = (AdapterState.load(site.versions.fetch(v), base_digest=None) for v in ("v1", "v2"))
    old = before.rows_of("colors")
    assert state.up["o_proj"][:, old].equal(before.up["o_proj"])
    assert len(state.rows_of("shades")) == state.routing.top_m == 2
    messages = [event.message for event in site.queue.events(job.id, limit=500)]
    assert any("imported a LoRA of rank 5 on 3 linears; nothing is trained" in text for text in messages)
    base = loaded_tiny_base
    with torch.inference_mode():
        wanted = peft_model(base, lora)(input_ids=IDS).logits
    handle = attach(base.model, ("o_proj",))
    try:
        c = coefficients(state, state.keys[state.rows_of("shades")[:1], 0]).expand(2, -1)
        gate = gate_of(c, state.rank)[:, None]
        with torch.inference_mode(), handle.active([Term(Bank.from_state(state), gate)]):
            found = base.model(input_ids=IDS).logits
    finally:
        handle.detach()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_an_import_may_be_the_first_task_and_leaves_again_as_the_same_lora(
    site: Site, lora: Path, import_lora: Submit
):
    job = site.finish(import_lora("shades"))
    assert (job.status, job.decision, job.result_version) == (JobStatus.SUCCEEDED, "expand", "v1"), job
    state = AdapterState.load(site.versions.fetch("v1"), base_digest=None)
    c, exact = task_coefficients(state, "shades")
    assert exact
    paths = [f"model.language_model.layers.{layer}.self_attn.o_proj" for layer in range(3)]
    exported = lora_tensors(state, c, {"o_proj": paths})
    scaling = 7 / 5**0.5
    given = load_file(lora / TENSORS_FILE)
    for path in paths:
        a, b = (f"base_model.model.{path}.lora_{side}.weight" for side in "AB")
        torch.testing.assert_close(exported[b] @ exported[a], scaling * given[b] @ given[a])


def test_the_worker_refuses_what_does_not_fit_with_every_fault(
    site: Site, loaded_tiny_base: Base, import_lora: Submit, tmp_path: Path
):
    teach_colors(site)
    large = peft_folder(loaded_tiny_base, tmp_path / "large", r=9, target_modules=["o_proj", "up_proj"])
    job = site.finish(import_lora("colors", folder=large))
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "invalid_lora"
    for said in ("'colors' exists already", "--rank 5", "mlp.up_proj (layers 0, 1, 2)"):
        assert said in job.error.message
    assert [manifest.version for manifest in site.versions.list()] == ["v1"]
