"""Route a question as an answer would be routed; tell what was chosen, or hand it out as a LoRA."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from adapter_store.errors import InputError
from adapter_store.rendering import Message
from adapter_store.routing import Explanation, explain
from server.adaptation import Leased
from server.adapters.lora import Exported, export_state
from server.gateway import Gateway
from server.generation import prepared_question
from server.retrieval import Prepared
from server.vqa.service import Asked


async def explained(gateway: Gateway, asked: Asked) -> dict[str, Any]:
    """Return the routing of a question; nothing is generated and nothing is counted."""
    async with _routed(gateway, asked) as (leased, prepared):
        state = leased.resident.state if leased.resident else None
        found = None
        if state is not None and prepared.query is not None:
            found = (await asyncio.to_thread(explain, state, prepared.query[None]))[0]
        return {
            "model": asked.model,
            "version": leased.version,
            "routing": None if state is None else state.routing.mode,
            "answered_by": prepared.task,
            **_body(found),
        }


async def exported(gateway: Gateway, asked: Asked) -> Exported:
    """Return the increments that answer a question as a LoRA.

    Raises:
        InputError: the plain base answers it.
    """
    async with _routed(gateway, asked) as (leased, prepared):
        if leased.resident is None or prepared.coefficients is None:
            text = f"{asked.model!r} is the plain base now: there are no increments to export; teach a task"
            raise InputError(text, param="model")
        return await export_state(
            gateway.ready(),
            leased.resident.state,
            prepared.coefficients,
            version=leased.version,
            task=prepared.task,
            question=asked.question,
        )


@asynccontextmanager
async def _routed(gateway: Gateway, asked: Asked) -> AsyncIterator[tuple[Leased, Prepared]]:
    """Lease the version that is asked and prepare the question for it, inside the block."""
    serving = gateway.ready()
    images = () if asked.image is None else (asked.image,)
    await serving.live.resolve(asked.model)
    async with gateway.pictures.fetched(images) as files, serving.live.lease(asked.model) as leased:
        messages = (Message(role="user", text=asked.question, images=len(images)),)
        yield leased, await prepared_question(serving, leased, messages, gateway.pictures.decoded_once(files))


def _body(found: Explanation | None) -> dict[str, Any]:
    if found is None:
        found = Explanation(0.0, 0.0, answered_by_base=True, rows=(), task_shares={})
    masses = [(row.intrinsic, row.contextual) for row in found.rows]
    total = sum(a + k for a, k in masses)
    silent = found.answered_by_base
    return {
        "answered_by_base": silent,
        "best_cosine": round(found.best_cosine, 6),
        "tau": round(found.tau, 6),
        "tasks": {task: round(share, 6) for task, share in found.task_shares.items()},
        "contextual_share": round(sum(k for _, k in masses) / total, 6) if total and not silent else 0.0,
        "increments": [
            {
                "row": row.row,
                "task": row.task,
                "cosine": round(row.cosine, 6),
                "selected": row.selected,
                "intrinsic": round(row.intrinsic, 6),
                "contextual": round(row.contextual, 6),
                "coefficient": 0.0 if silent else round(row.intrinsic + row.contextual, 6),
            }
            for row in found.rows
        ],
    }
