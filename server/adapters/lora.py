"""Hand out a version's increments as a plain PEFT LoRA."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import Response

from adapter_store.errors import InputError
from adapter_store.lora.export import Origin, lora_files, packed, task_coefficients
from adapter_store.names import BASE_VERSION, check_task_name, check_version_id
from adapter_store.state import AdapterState
from server.adapters.service import Adapters
from server.gateway import Gateway
from server.openapi import example
from server.pools import DATASETS
from server.serving import Serving

if TYPE_CHECKING:
    import torch

EXPORTED = example(
    "a zip of adapter_config.json, adapter_model.safetensors, README.md and strata.json",
    media_type="application/zip",
)


@dataclass(frozen=True, slots=True)
class Exported:
    """A packed LoRA folder, the version it was made from, and the name of the zip."""

    content: bytes
    version: str
    filename: str


async def exported_task(gateway: Gateway, name: str, version: str, task: str) -> Exported:
    """Return a task of a version as a LoRA.

    Raises:
        NotFoundError: no such lineage, version or task.
        InputError: the version is the base.
    """
    Adapters(gateway, name)  # it knows which names there are
    check_task_name(task)
    if check_version_id(version) == BASE_VERSION:
        raise InputError("the base has no increments to export; name a version of the list", param="version")
    serving = gateway.ready()
    folder = await asyncio.to_thread(gateway.store.fetch, version)
    state, c, exact = await DATASETS.run(_task_of, folder, serving.base_digest, task)
    return await export_state(serving, state, c, version=version, task=task, exact=exact)


async def export_state(
    serving: Serving,
    state: AdapterState,
    c: torch.Tensor,
    *,
    version: str,
    task: str | None,
    question: str | None = None,
    exact: bool = True,
) -> Exported:
    """Return what a state does with the coefficients ``c`` ``[N]`` as a LoRA; arguments as of ``Origin``.

    Raises:
        InputError: ``c`` is zero.
        TargetMismatch: the state adapts other linears than this gateway's base has.
    """
    serving.increments.check_fits(state, version)
    origin = Origin(serving.base_id, serving.base_digest, version, task, question, exact)
    files = await DATASETS.run(lora_files, state, c, serving.increments.paths, origin)
    return Exported(await DATASETS.run(packed, files), version, f"{task}-{version}-lora.zip")


def zip_response(exported: Exported) -> Response:
    """Return the answer that carries an exported LoRA."""
    headers = {
        "content-disposition": f'attachment; filename="{exported.filename}"',
        "x-adapter-version": exported.version,
    }
    return Response(exported.content, media_type="application/zip", headers=headers)


def _task_of(folder: Path, digest: str, task: str) -> tuple[AdapterState, torch.Tensor, bool]:
    state = AdapterState.load(folder, base_digest=digest)
    return state, *task_coefficients(state, task)
