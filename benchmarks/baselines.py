"""The library's own ways to answer: ``generate`` alone, and with a mixed batch of PEFT adapters."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from adapter_store.base import load_base
from adapter_store.state import AdapterState

if TYPE_CHECKING:
    from benchmarks.engine import Question


class _Clock(LogitsProcessor):
    """Note when each step's logits are there; tokens follow at once."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.moments: list[float] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ARG002
        self.moments.append(time.perf_counter() - self.began)
        return scores


class LibraryRunner:
    """Answer questions with an untouched copy of the base."""

    def __init__(self, place: str | Path, state: AdapterState) -> None:
        base = load_base(place)
        self.model: Any = base.model
        self.processor: Any = base.processor
        self.state = state
        self._peft: Any = None
        self._adapters: list[str] = []

    def one_by_one(self, question: Question, new_tokens: int) -> list[float]:
        """Answer one question; give the seconds after which each token was there."""
        return self._generate(self.model, [question], new_tokens)

    def mixed_batch(self, questions: Sequence[Question], new_tokens: int) -> list[float]:
        """Answer all questions in one padded batch, each row with its own adapter."""
        model = self._with_adapters(questions)
        names = self._adapters[: len(questions)]
        self._generate(model, questions, 2, adapter_names=names)
        return self._generate(model, questions, new_tokens, adapter_names=names)

    def _generate(
        self, model: Any, questions: Sequence[Question], new_tokens: int, **options: Any
    ) -> list[float]:
        clock = _Clock()
        part = [{"type": "image"}]
        texts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [*part, {"type": "text", "text": question.text}]}],
                add_generation_prompt=True,
            )
            for question in questions
        ]
        inputs = self.processor(
            images=[question.picture for question in questions],
            text=texts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )
        with torch.inference_mode():
            model.generate(
                **inputs,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                logits_processor=LogitsProcessorList([clock]),
                **options,
            )
        return clock.moments

    def _with_adapters(self, questions: Sequence[Question]) -> Any:
        """Give the model with one adapter for each question, holding the question's weighted increments."""
        from peft import LoraConfig, get_peft_model

        ranks = self.state.rank * 4
        layers = self.model.model.language_model.layers
        first = len(layers) - len(self.state.down["o_proj"])
        numbers = "|".join(str(layer) for layer in range(first, len(layers)))
        targets = rf".*language_model\.layers\.({numbers})\..*o_proj"
        config = LoraConfig(r=ranks, lora_alpha=ranks, target_modules=targets)
        for index, question in enumerate(questions):
            name = f"request{index}"
            if name in self._adapters:
                continue
            if self._peft is None:
                self._peft = get_peft_model(self.model, config, adapter_name=name)
            else:
                self._peft.add_adapter(name, config)
            self._adapters.append(name)
            self._fill(name, question.coefficients)
        self._peft.eval()
        return self._peft

    def _fill(self, name: str, coefficients: torch.Tensor) -> None:
        chosen = coefficients.nonzero().flatten()
        down, up = self.state.down["o_proj"], self.state.up["o_proj"]
        scale = coefficients[chosen].view(-1, 1, 1)
        layers = list(self.model.model.language_model.layers)[-len(down) :]
        for index, layer in enumerate(layers):
            lora = layer.self_attn.o_proj
            lora.lora_A[name].weight.data.copy_(down[index, chosen].flatten(0, 1))
            lora.lora_B[name].weight.data.copy_((up[index, chosen] * scale).permute(1, 0, 2).flatten(1))
