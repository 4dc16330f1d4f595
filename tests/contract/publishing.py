"""Publish random but valid versions, with probes computed without any engine."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from adapter_store.base.load import Base
from adapter_store.encoder import SentenceEncoder
from adapter_store.increments import Bank, Term, attach, gate_of
from adapter_store.matrix import AccuracyMatrix
from adapter_store.queries import QueryEncoder, query_width
from adapter_store.rendering import Message, Renderer
from adapter_store.routing import coefficients
from adapter_store.state import AdapterState, RoutingSettings
from adapter_store.versions import Gate, Manifest, ManifestDraft, Probe, VersionStore
from adapter_store.vision import VisionEncoder
from tests.contract.pictures import png

QUESTION = "Which digit is it?"
PICTURE = png("red")


class Publisher:
    """Make and publish versions for one loaded base."""

    def __init__(self, base: Base, store: VersionStore) -> None:
        assert base.sentence_encoder is not None
        self.base = base
        self.store = store
        self.renderer = Renderer(base)
        self.vision = VisionEncoder(base)
        self.sentences = SentenceEncoder(base.sentence_encoder)
        self.queries = QueryEncoder(self.sentences, base.calibration)

    def state(self, seed: int, task: str = "digits") -> AdapterState:
        """Return a state with one task whose increments answer ``QUESTION`` and clearly change the answer."""
        increments = attach(self.base.model, ("o_proj",))
        shapes = increments.shapes
        increments.detach()
        routing = RoutingSettings("text", top_m=2)
        generator = torch.Generator().manual_seed(seed)
        width = query_width(routing, self.sentences.width)
        state = AdapterState.empty(self.base.digest, shapes, width, rank=4, routing=routing)
        state = state.expand(task, rows=4, generator=generator)
        near = self.queries.encode([QUESTION], None, routing)
        noise = 0.05 * torch.randn(4, width, generator=generator)
        up = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in state.up.items()}
        return state.with_rows(range(4), keys=torch.nn.functional.normalize(near + noise, dim=-1), up=up)

    @torch.inference_mode()
    def greedy(
        self, state: AdapterState | None, question: str = QUESTION, picture: bytes = PICTURE, tokens: int = 6
    ) -> tuple[list[int], list[float]]:
        """Return the greedy answer, whole sequence by whole sequence: ids (end token included), logprobs."""
        features = self.vision.encode([Image.open(io.BytesIO(picture)).convert("RGB")])[0]
        prompt = self.renderer.prompt([Message("user", question, 1)])
        ids = list(prompt.input_ids)
        start = prompt.gate_start("after_image")
        picked: list[int] = []
        logprobs: list[float] = []
        increments = attach(self.base.model, ("o_proj",))
        try:
            while len(picked) < tokens and (not picked or picked[-1] not in self.renderer.stop_ids):
                embeds = self.base.model.get_input_embeddings()(torch.tensor([ids]))
                for begin, end in prompt.image_spans:
                    embeds[0, begin:end] = features.embeds
                terms = []
                if state is not None:
                    query = self.queries.encode([question], [features.pooled], state.routing)
                    gate = torch.zeros(1, len(ids), state.total_rank)
                    gate[0, start:] = gate_of(coefficients(state, query), state.rank)
                    terms = [Term(Bank.from_state(state), gate)]
                with increments.active(terms):
                    logits = self.base.model(inputs_embeds=embeds).logits[0, -1].float()
                picked.append(int(logits.argmax()))
                logprobs.append(float(logits.log_softmax(-1)[picked[-1]]))
                ids.append(picked[-1])
        finally:
            increments.detach()
        return picked, logprobs

    def logprobs(self, state: AdapterState | None) -> list[float]:
        """Return the log probabilities of the greedy answer, without the end token: a fingerprint."""
        ids, logprobs = self.greedy(state)
        return [
            value for token, value in zip(ids, logprobs, strict=True) if token not in self.renderer.stop_ids
        ]

    def publish(
        self,
        state: AdapterState,
        *,
        parent: str = "base",
        probe: Probe | None = None,
        job: str = "",
        reasons: tuple[str, ...] = (),
        accuracy: AccuracyMatrix | None = None,
        decision: Literal["retrain", "expand"] = "expand",
    ) -> Manifest:
        """Publish ``state`` with an honest probe, or with the given one; with ``reasons`` as held back."""
        task = state.tasks[-1]
        if probe is None:
            ids, logprobs = self.greedy(state)
            probe = Probe(
                question=QUESTION, image="probe.png", answer_token_ids=tuple(ids), logprobs=tuple(logprobs)
            )
        number = len(self.store.list()) + 1
        if accuracy is None:
            accuracy = AccuracyMatrix.empty().with_stage(task, {task: 0.75}, {task: 0.25})
        draft = ManifestDraft(
            parent=parent,
            base_id=self.base.base_id,
            base_digest=self.base.digest,
            job_id=job or f"job-test{number}",
            dataset_id="ds-0123456789abcdef",
            task=task,
            decision=decision,
            tasks=state.tasks,
            accuracy=accuracy,
            routing_leak=dict.fromkeys(accuracy.tasks, 0.125),
            zero_shot_retention=0.99,
            gate=Gate(passed=not reasons, reasons=reasons),
            probe=probe,
        )
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            state.save(folder)
            (folder / "probe.png").write_bytes(PICTURE)
            return self.store.publish(folder, draft, fence=int(time.time() * 1000))
