"""Versions to swap: really acting increments, probes that were computed without any engine, real files."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from adapter_store.bank import Bank, gate_of
from adapter_store.encoder import SentenceEncoder
from adapter_store.increments import Term, attach
from adapter_store.queries import QueryEncoder
from adapter_store.rendering import Message, Renderer
from adapter_store.routing import coefficients
from adapter_store.settings import FROZEN_SHARE, TARGETS
from adapter_store.state import AdapterState, RoutingSettings
from adapter_store.versions import Gate, Manifest, ManifestDraft, Probe, VersionStore
from adapter_store.vision import VisionEncoder
from benchmarks.live.questions import QUESTIONS, picture_of, png_of

if TYPE_CHECKING:
    from adapter_store.base.load import Base

PROBE_PICTURE, PROBE_TOKENS = 0, 3  # a word and its end, as taught answers are
RANK, ROWS = 8, 4


@dataclass(frozen=True, slots=True)
class Draft:
    """Hold a version that is ready to be published: its folder and what its manifest will say."""

    folder: Path
    draft: ManifestDraft

    def publish(self, store: VersionStore) -> Manifest:
        """Publish it now."""
        return store.publish(self.folder, self.draft, fence=int(time.time() * 1000))


class VersionMaker:
    """Make versions for one loaded base.

    Args:
        base: a loaded base.
        frozen_share: part of the layers, from the bottom, that the gateway does not adapt.
        up_scale: standard deviation of the up projections; with less than 1 hardly any answer changes.
    """

    def __init__(self, base: Base, frozen_share: float, up_scale: float = 3.0) -> None:
        self.base = base
        self._share = frozen_share
        self._up_scale = up_scale
        self._targets = tuple(TARGETS.split(","))
        self._renderer = Renderer(base)
        self._vision = VisionEncoder(base)
        self._queries = QueryEncoder(SentenceEncoder(base.sentence_encoder), base.calibration)

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> VersionMaker:
        """Load the base that ``live_parser``'s options name, for versions that a gateway takes as it is."""
        from adapter_store.base import load_base

        torch.set_num_threads(arguments.threads)
        return cls(load_base(arguments.base, device="cpu"), FROZEN_SHARE)

    def state(self, seed: int, rows: int = ROWS) -> AdapterState:
        """Return one task of ``rows`` increments; the first four answer every question of the pool."""
        increments = attach(self.base.model, self._targets, self._share)
        shapes = increments.shapes
        increments.detach()
        routing = RoutingSettings("text")
        generator = torch.Generator().manual_seed(seed)
        width = self._queries.width(routing)
        state = AdapterState.empty(self.base.digest, shapes, width, RANK, "after_image", routing)
        state = state.expand("benchmark", rows, generator)
        up = {
            name: self._up_scale * torch.randn(tensor.shape, generator=generator)
            for name, tensor in state.up.items()
        }
        keys = self._queries.encode(QUESTIONS, None, routing)[None].expand(ROWS, -1, -1)
        return state.with_rows(range(rows), up=up).with_rows(range(ROWS), keys=keys)

    def rows_for(self, size_bytes: int) -> int:
        """Return how many increments a version needs to be at least ``size_bytes`` large."""
        some, more = self.state(0).nbytes, self.state(0, ROWS + 1).nbytes
        return max(ROWS, ROWS + -(-(size_bytes - some) // (more - some)))

    def prepare(self, state: AdapterState, folder: Path, job: str, *, honest: bool = True) -> Draft:
        """Write a version's files; not ``honest``: with a probe that no version reproduces."""
        state.save(folder)
        (folder / "probe.png").write_bytes(png_of(PROBE_PICTURE))
        ids, logprobs = self._greedy(state)
        if not honest:
            ids = [(token + 1) % 100 for token in ids]
        probe = Probe(
            question=QUESTIONS[0],
            image="probe.png",
            answer_token_ids=tuple(ids),
            logprobs=tuple(logprobs),
        )
        draft = ManifestDraft(
            base_id=self.base.base_id,
            base_digest=self.base.digest,
            job_id=job,
            dataset_id="ds-0123456789abcdef",
            task=state.tasks[-1],
            decision="expand",
            tasks=state.tasks,
            gate=Gate(passed=True),
            probe=probe,
        )
        return Draft(folder, draft)

    @torch.inference_mode()
    def _greedy(self, state: AdapterState) -> tuple[list[int], list[float]]:
        """Return the probe's answer, whole sequence by whole sequence: token ids and log probabilities."""
        features = self._vision.encode([picture_of(PROBE_PICTURE)])[0]
        prompt = self._renderer.prompt([Message("user", QUESTIONS[0], 1)])
        ids = list(prompt.input_ids)
        query = self._queries.encode([QUESTIONS[0]], [features.pooled], state.routing)
        weights = gate_of(coefficients(state, query), state.rank)
        increments = attach(self.base.model, self._targets, self._share)
        bank = Bank.from_state(state, dtype=self.base.model.dtype, device=self.base.model.device)
        picked: list[int] = []
        logprobs: list[float] = []
        try:
            while len(picked) < PROBE_TOKENS and not set(picked) & self._renderer.stop_ids:
                gate = torch.zeros(1, len(ids), state.total_rank)
                gate[0, prompt.gate_start(state.span) :] = weights
                logits = self._logits(ids, prompt.image_spans, features.embeds, increments, bank, gate)
                picked.append(int(logits.argmax()))
                logprobs.append(float(logits.log_softmax(-1)[picked[-1]]))
                ids.append(picked[-1])
        finally:
            increments.detach()
        return picked, logprobs

    def _logits(
        self,
        ids: Sequence[int],
        spans: Sequence[tuple[int, int]],
        picture: torch.Tensor,
        increments: object,
        bank: Bank,
        gate: torch.Tensor,
    ) -> torch.Tensor:
        model = self.base.model
        embeds = model.get_input_embeddings()(torch.tensor([ids], device=model.device)).clone()
        for begin, end in spans:
            embeds[0, begin:end] = picture
        gate = gate.to(model.device, model.dtype)
        with increments.active([Term(bank, gate)]):  # type: ignore[attr-defined]
            return model(inputs_embeds=embeds).logits[0, -1].float().cpu()
