"""One ordinary LoRA, made of the same increments and learned by the same loop: the baselines.

All rows answer every question with equal weight, so nothing is routed; the rank is rows times r.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from adapter_store.datasets import Dataset, Example
from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.state import AdapterState, RoutingSettings
from trainer_worker.evaluate import Served, warm
from trainer_worker.features import Encoded
from trainer_worker.heldout import picture_key
from trainer_worker.learn import Lesson, learn, split_validation
from trainer_worker.prefixes import PrefixStore
from trainer_worker.workshop import Workshop

Part = tuple[Dataset, Sequence[Example]]
"""A data set, and the examples of it that are learned from."""
NAME = "lora"


@dataclasses.dataclass(frozen=True, slots=True)
class AlwaysOn(Served):
    """A state all of whose rows answer everything, with weights that add up to 1."""

    def coefficients(self, queries: Tensor) -> Tensor:
        """Return equal coefficients ``[B, N]``."""
        return torch.full((len(queries), self.state.rows), 1 / self.state.rows)


def untrained(shop: Workshop, rows: int, seed: int) -> AdapterState:
    """Return a LoRA of rank ``rows`` times r that does nothing yet."""
    state = shop.untaught().with_routing(mode="text", top_m=rows, tau=-1.0)
    state = state.expand(NAME, rows, torch.Generator().manual_seed(seed))
    keys = torch.full_like(state.keys, state.query_width**-0.5)
    return state.with_rows(state.rows_of(NAME), keys=keys)


def train(
    shop: Workshop,
    state: AdapterState,
    parts: Sequence[Part],
    settings: Hyperparameters,
    *,
    again: bool = False,
) -> tuple[AdapterState, float]:
    """Return a LoRA trained on examples of one or several data sets, and the seconds that training took.

    ``again``: they are of a task that it knows. Encoding the pictures is not counted, as with Strata.
    """
    encoded, groups = _encoded(shop, parts)
    began = time.monotonic()
    store = PrefixStore(encoded.prefixes, encoded.pictures, budget_bytes=shop.prefix_cache_bytes)
    order = list(range(len(encoded)))
    if state.span == "after_image":
        warm(shop.replicas, encoded.samples, store, order)
    inside, validation = split_validation(groups, settings, settings.seed)
    lesson = Lesson(encoded, store, inside, validation)
    learned = learn(shop.replicas, state, NAME, lesson, settings, again=again)
    return learned.state, time.monotonic() - began


def _encoded(shop: Workshop, parts: Sequence[Part]) -> tuple[Encoded, list[str]]:
    """Encode the examples of several data sets together; every query is the same one."""
    origin: dict[str, Dataset] = {}
    examples: list[Example] = []
    for dataset, chosen in parts:
        origin |= {example.image: dataset for example in chosen if example.image is not None}
        examples += chosen

    def image(name: str) -> Image.Image:
        return origin[name].image(name)

    encoded = shop.featurizer.encode(examples, image, RoutingSettings("text"))
    queries = torch.full((len(encoded), shop.queries.width(shop.method.routing)), 1.0)
    queries = queries / queries.norm(dim=1, keepdim=True)
    groups = [picture_key(example) for example in encoded.examples]
    return dataclasses.replace(encoded, queries=queries), groups
