"""Measure what the base could do before and must still do: general questions that belong to no task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from torch import Tensor

from adapter_store.datasets import Example, Turn
from adapter_store.durable import make_folder, write_durably
from adapter_store.state import RoutingSettings
from trainer_worker.evaluate import Score, Served, score_base, score_state
from trainer_worker.features import Encoded, Featurizer
from trainer_worker.prefixes import PrefixStore
from trainer_worker.replicas import Replicas

Question = tuple[Image.Image, str, str]
PROBE_SEED = 20_241


class RetentionProbe:
    """Ask general questions (picture, question, answer) of the base once and of every candidate.

    The base's score is remembered in ``folder`` by base, dtype and questions.
    """

    def __init__(self, questions: Callable[[int, int], list[Question]], *, count: int, folder: Path) -> None:
        self._questions = questions
        self._count = count
        self._folder = folder

    def measure(
        self,
        replicas: Replicas,
        served: Served,
        featurizer: Featurizer,
        *,
        budget_bytes: int,
        check: Callable[[], None] = lambda: None,
    ) -> float | None:
        """Return the candidate's score over the base's; None when the base scores 0 or nothing is asked."""
        if self._count < 1:
            return None
        encoded = self._encode(featurizer, served.state.routing, check)
        store = PrefixStore(encoded.prefixes, encoded.pictures, budget_bytes=budget_bytes, half=False)
        base = self._base_score(replicas, served, encoded, store, check)
        if not base.correct:
            return None
        adapted = score_state(replicas, served, encoded, store, base=base, check=check)
        return adapted.correct / base.correct

    def strangers(
        self, featurizer: Featurizer, routing: RoutingSettings, check: Callable[[], None]
    ) -> Tensor:
        """Return queries ``[n, q]`` of general questions, other ones than those that are measured."""
        return self._encode(featurizer, routing, check, PROBE_SEED + 1).queries

    def _encode(
        self,
        featurizer: Featurizer,
        routing: RoutingSettings,
        check: Callable[[], None],
        seed: int = PROBE_SEED,
    ) -> Encoded:
        questions = self._questions(self._count, seed)
        pictures = {str(number): picture for number, (picture, _, _) in enumerate(questions)}
        examples = [
            Example(str(number), str(number), (Turn(question, answer),))
            for number, (_, question, answer) in enumerate(questions)
        ]
        return featurizer.encode(examples, pictures.__getitem__, routing, check=check)

    def _base_score(
        self,
        replicas: Replicas,
        served: Served,
        encoded: Encoded,
        store: PrefixStore,
        check: Callable[[], None],
    ) -> Score:
        asked = [
            served.state.base_digest,
            str(replicas.language.dtype),
            [(example.turns[0].question, example.turns[0].answer) for example in encoded.examples],
        ]
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        path = self._folder / f"base-{digest[:32]}.json"
        if path.exists():
            return Score(**json.loads(path.read_text()))
        score = score_base(replicas, encoded, store, check=check)
        make_folder(path.parent)
        write_durably(path, json.dumps(asdict(score)).encode())
        return score
