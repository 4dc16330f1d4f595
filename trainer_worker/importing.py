"""Make an imported LoRA the increments of a new task, in place of training."""

from __future__ import annotations

from adapter_store.datasets.records import FaultList
from adapter_store.errors import InputError
from adapter_store.jobs import Job
from adapter_store.lora.reading import Lineage, Lora, examine, filled
from adapter_store.lora.store import refuse
from adapter_store.state import AdapterState
from trainer_worker.learn import Learned
from trainer_worker.workshop import Workshop

_MAX_FAULTS = 200


def lora_of(shop: Workshop, job: Job, state: AdapterState) -> Lora | None:
    """Return the LoRA that a job imports, checked against the state it builds on; None if it trains.

    Raises:
        LoraError: with every reason why it cannot become a task of this lineage.
        NotFoundError: it is not stored.
        StoreError: its files are damaged.
    """
    if job.adapter is None:
        return None
    if job.task is None:
        raise InputError("an import must name its task", param="task")
    faults = FaultList(_MAX_FAULTS)
    lora = examine(shop.loras.open(job.adapter), faults, _lineage(shop, state), job.task)
    refuse(faults)
    return lora


def take_over(shop: Workshop, state: AdapterState, task: str, lora: Lora) -> Learned:
    """Return the state whose increments of ``task`` do what the LoRA does, as if learned in no step."""
    whole = filled(state, task, lora, _lineage(shop, state))
    return Learned(whole, steps=0, samples=0, seconds=0.0, loss=0.0, statistics={})


def take_over_note(state: AdapterState, lora: Lora) -> str:
    """Say what was imported, and where it acts otherwise than under PEFT."""
    text = f"imported a LoRA of rank {lora.rank} on {len(lora.sides)} linears; nothing is trained"
    if state.span == "after_image":
        text += "; this lineage lets it act behind the picture only, PEFT on all tokens"
    return text


def _lineage(shop: Workshop, state: AdapterState) -> Lineage:
    increments = shop.replicas.increments
    return Lineage.of(increments.paths, increments.shapes, state)
