"""Prove that a staged version answers as it did when it was published, before any request may see it."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

from PIL import Image

from adapter_store.errors import BaseModelError, ProbeFailed, StrataError, UnavailableError
from adapter_store.images import decode_image
from adapter_store.rendering import Message
from adapter_store.versions import Probe
from server.engine import Engine, GenerationRequest, Sampling, TokenLogprob
from server.logs import log
from server.residency import Resident
from server.retrieval import Question, Retriever


async def warm_up(retriever: Retriever, engine: Engine) -> None:
    """Answer one small question with the base, so that a base that cannot answer is found at the start.

    Raises:
        StrataError: the base loads but cannot be asked about a picture.
    """
    message = Message(role="user", text="What is it?", images=1)
    picture = Image.new("RGB", (16, 16), "white")
    prepared = await retriever.prepare(Question((message,), (picture,), None))
    request = GenerationRequest(
        request_id="warm-up",
        input_ids=prepared.input_ids,
        images=prepared.images,
        gate_start=prepared.gate_start,
        sampling=Sampling(max_tokens=2),
    )
    async for chunk in engine.generate(request):
        if chunk.finish_reason in ("error", "abort"):
            raise BaseModelError(f"the base cannot answer: {chunk.error or chunk.finish_reason}")


class Prober:
    """Ask a staged version its manifest's probe through the engine that will serve it."""

    def __init__(
        self, retriever: Retriever, engine: Engine, *, end_ids: frozenset[int], tolerance: float
    ) -> None:
        self._retriever = retriever
        self._engine = engine
        self._end_ids = end_ids
        self._tolerance = tolerance

    async def __call__(self, resident: Resident, folder: Path) -> None:
        """Raise ProbeFailed unless token ids are equal and log probabilities within the tolerance.

        Raises:
            UnavailableError: the engine is too busy, out of memory or stopping, which says nothing about the
                version.
        """
        probe = resident.manifest.probe
        if probe is None:
            log("version has no probe", version=resident.version)
            return
        try:
            picked = await self._ask(probe, resident, folder)
        except UnavailableError:
            raise
        except StrataError as error:
            raise ProbeFailed(
                f"the probe of {resident.version} could not be asked: {error.message}"
            ) from error
        self._compare(probe, picked, resident.version)

    async def _ask(self, probe: Probe, resident: Resident, folder: Path) -> list[TokenLogprob]:
        images = []
        if probe.image is not None:
            data = await asyncio.to_thread((folder / Path(probe.image).name).read_bytes)
            images.append(await asyncio.to_thread(decode_image, data))
        message = Message(role="user", text=probe.question, images=len(images))
        question = Question((message,), tuple(images), resident.state, resident.pool)
        prepared = await self._retriever.prepare(question)
        request = GenerationRequest(
            request_id=f"probe-{uuid.uuid4().hex}",
            input_ids=prepared.input_ids,
            images=prepared.images,
            gate_start=prepared.gate_start,
            version=resident.version,
            coefficients=prepared.served,
            sampling=Sampling(max_tokens=len(probe.answer_token_ids), logprobs=0),
        )
        picked: list[TokenLogprob] = []
        async for chunk in self._engine.generate(request):
            if chunk.finish_reason == "abort" or (chunk.finish_reason and self._engine.stats().error):
                raise UnavailableError("the engine stopped while it was asked the probe")
            if chunk.finish_reason == "error" and not chunk.not_finite:
                raise UnavailableError(f"the engine could not finish the probe now: {chunk.error}")
            if chunk.finish_reason == "error":
                raise ProbeFailed(f"the engine gave up on the probe: {chunk.error}")
            picked.extend(chunk.logprobs or ())
        return picked

    def _compare(self, probe: Probe, picked: list[TokenLogprob], version: str) -> None:
        wanted = list(probe.answer_token_ids)
        while wanted and wanted[-1] in self._end_ids:  # the engine reports no end tokens
            wanted.pop()
        got = [item.token_id for item in picked]
        if got != wanted:
            text = f"the probe of {version} answered with tokens {got[:16]} instead of {wanted[:16]}"
            raise ProbeFailed(text)
        for place, (item, recorded) in enumerate(zip(picked, probe.logprobs, strict=False)):
            off = abs(item.logprob - recorded)
            if not off <= self._tolerance:
                text = f"log probability {place} of the probe of {version} is off by {off:.4g}"
                raise ProbeFailed(f"{text}, more than {self._tolerance:g}")
