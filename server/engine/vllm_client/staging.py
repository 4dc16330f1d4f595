"""Fill a bank on all workers, and prove at the start that what lies in a bank acts on answers."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adapter_store.errors import BaseModelError, StateInvalid, UnavailableError
from adapter_store.state import AdapterState, Shape
from server.engine.protocol import GenerationRequest, Sampling
from server.engine.vllm_client.core import Core, CoreDied
from server.engine.vllm_client.prompts import engine_prompt, sampling_params
from server.engine.vllm_client.state_file import StateFolder
from server.engine.vllm_plugin.requests import Gated
from server.logs import log

if TYPE_CHECKING:
    from adapter_store.base.load import Base

_POLL_SECONDS = 0.002
_FILL_SECONDS = 120.0
_BANK = 0
_QUESTION = "What is shown in the picture?"


async def fill(core: Core, bank: int, state: AdapterState, dtype: torch.dtype, folder: StateFolder) -> None:
    """Copy a state into an idle bank of every worker while requests run on the others.

    The workers copy in threads of their own, so no step waits for it; each verifies the file's hash, that
    all values are finite and that its memory reads back what was written.

    Args:
        core: the engine.
        bank: an idle bank.
        state: what to copy.
        dtype: what the model computes in.
        folder: where the file lies on its way.

    Raises:
        StateInvalid: no worker will ever take it.
        UnavailableError: a worker could not take it now.
        CoreDied: the engine is gone.
    """
    outcomes: list[Path] = []
    file = await asyncio.to_thread(folder.write, state, dtype)
    try:
        async with asyncio.timeout(_FILL_SECONDS):
            called = await core.call("pool_fill", bank, str(file.path), file.digest, file.rank)
            outcomes = [Path(outcome) for outcome in called]
            while not all(outcome.exists() for outcome in outcomes):
                if core.dead:
                    raise CoreDied("the engine died while it filled a bank")
                await asyncio.sleep(_POLL_SECONDS)
        told = [json.loads(outcome.read_text(encoding="utf-8")) for outcome in outcomes]
    except TimeoutError:
        raise UnavailableError("the engine did not fill the bank in time; try again later") from None
    finally:
        for left in (file.path, *outcomes):
            left.unlink(missing_ok=True)
    _judge(told)


def _judge(told: Sequence[dict[str, str | None]]) -> None:
    """Raise what the workers said: a refusal is for good, a fault may pass."""
    refused = sorted({answer["refused"] for answer in told if answer["refused"]})
    if refused:
        raise StateInvalid(f"the increments cannot be served by this engine: {'; '.join(refused)}")
    faults = sorted({answer["fault"] for answer in told if answer["fault"]})
    if faults:
        log("a bank was not filled", logging.ERROR, faults=faults)
        raise UnavailableError("the engine could not take the increments now; try again later")


async def prove_that_the_pool_acts(
    core: Core, shapes: dict[str, Shape], base: Base, dtype: torch.dtype, folder: StateFolder
) -> None:
    """Answer one question with and without made-up increments: the distributions must differ.

    A hook that is not called, or a gate that was frozen into a graph, would leave every answer the base's
    without any error.

    Raises:
        BaseModelError: the increments have no effect.
    """
    generator = torch.Generator().manual_seed(0)
    state = AdapterState.empty(base.digest, shapes, 1, rank=1).expand(
        "self-test", rows=1, generator=generator
    )
    for name, up in state.up.items():
        up.copy_(torch.randn(up.shape, generator=generator) / math.sqrt(shapes[name][1]))
    await fill(core, _BANK, state, dtype, folder)
    plain = await _first_logprob(core, base, None)
    adapted = await _first_logprob(core, base, Gated(_BANK, torch.ones(1), 0, None, 1))
    await core.call("pool_empty", _BANK)
    if plain == adapted:
        raise BaseModelError(
            "vLLM runs, but increments have no effect on its answers: its model runner offers none of the "
            "hooks that Strata knows; use the pinned release of vLLM or --engine transformers"
        )


async def _first_logprob(core: Core, base: Base, gated: Gated | None) -> float:
    ids = tuple(base.tokenizer(_QUESTION).input_ids)
    request = GenerationRequest(
        f"self-test-{gated is None}", ids, sampling=Sampling(max_tokens=1, logprobs=0)
    )
    prompt = engine_prompt(request, base.image_token_id, gated)
    params = sampling_params(request.sampling, 1, frozenset(), gated)
    found: Any = None
    async for output in core.submit(request.request_id, prompt, params):
        found = output.outputs[0].logprobs or found
    return next(iter(found[0].values())).logprob
