"""transformers + PEFT: one padded batch, every row with its own adapter, by the library's ``generate``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adapter_store.base import load_base
from server.engine.protocol import GenerationRequest

if TYPE_CHECKING:
    from adapter_store.base.load import Base


@dataclass(slots=True)
class PeftSystem:
    """Gather the requests of a round into one batch, for the library cannot take another in half way."""

    name: str
    base: Base
    folders: Sequence[Path]
    gathered: list[tuple[int, GenerationRequest, asyncio.Future[list[float]]]] = field(default_factory=list)
    model: Any = None
    running: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Load a copy of the base and wrap it with the adapters."""
        self.model = await asyncio.to_thread(self._load)

    async def ask(self, number: int, request: GenerationRequest) -> AsyncIterator[float]:
        """Answer with the batch that this request falls into; moments are those of the batch's steps."""
        answer: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self.gathered.append((number, request, answer))
        if self.running is None or self.running.done():
            self.running = asyncio.create_task(self._run())
        for moment in await answer:
            yield moment

    def close(self) -> None:
        """Let the model go."""
        self.model = None

    def _load(self) -> Any:
        from peft import PeftModel

        model = load_base(self.base.path, dtype=self.base.model.dtype).model
        for number, folder in enumerate(self.folders):
            if number:
                model.load_adapter(folder, f"a{number}")
            else:
                model = PeftModel.from_pretrained(model, folder, "a0")
        return model.eval()

    async def _run(self) -> None:
        await asyncio.sleep(0)  # everything that was asked at once is here now
        batch, self.gathered = self.gathered, []
        moments = await asyncio.to_thread(self._generate, [(number, request) for number, request, _ in batch])
        for _, _, answer in batch:
            answer.set_result(moments)

    @torch.inference_mode()
    def _generate(self, batch: Sequence[tuple[int, GenerationRequest]]) -> list[float]:
        from transformers import LogitsProcessorList

        model, width = self.model, max(len(request.input_ids) for _, request in batch)
        place = {"device": model.device}
        hidden = model.config.text_config.hidden_size
        embeds = torch.zeros(len(batch), width, hidden, dtype=model.dtype, **place)
        mask = torch.zeros(len(batch), width, dtype=torch.long, **place)
        table = model.get_input_embeddings()
        for row, (_, request) in enumerate(batch):
            ids = torch.tensor(request.input_ids, **place)
            own = table(ids).clone()
            own[ids == self.base.image_token_id] = torch.cat([image.embeds for image in request.images]).to(
                own
            )
            embeds[row, width - len(ids) :] = own
            mask[row, width - len(ids) :] = 1
        began: list[float] = []

        def clock(_: Any, scores: Any) -> Any:
            began.append(time.perf_counter())
            return scores

        tokens = batch[0][1].sampling.max_tokens
        model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([clock]),
            adapter_names=[f"a{number % len(self.folders)}" for number, _ in batch],
        )
        return began
