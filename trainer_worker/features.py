"""Turn examples into what learning and measuring run on: samples, picture features, queries.

Every picture is encoded once (frozen tower and projector); each text once (frozen sentence encoder).
Rendering and queries are the very functions that serving uses, so coefficients agree everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from adapter_store.datasets.records import Example
from adapter_store.queries import QueryEncoder
from adapter_store.rendering import Renderer
from adapter_store.state import RoutingSettings
from adapter_store.vision import VisionEncoder
from trainer_worker.samples import Prefix, Sample

PICTURES_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Encoded:
    """Samples with their prefixes, projected pictures ``[n, tokens, hidden]`` (on the CPU), queries.

    ``examples`` are the examples behind the samples, in the same order; ``dropped`` counts those that are
    longer than the model can read.
    """

    examples: tuple[Example, ...]
    samples: tuple[Sample, ...]
    prefixes: tuple[Prefix, ...]
    pictures: Tensor | None
    queries: Tensor
    dropped: int

    def __len__(self) -> int:
        return len(self.samples)


class Featurizer:
    """Encode examples with the frozen parts of one base."""

    def __init__(
        self,
        *,
        renderer: Renderer,
        vision: VisionEncoder,
        queries: QueryEncoder,
        max_tokens: int = 2048,
        threads: int = 1,
    ) -> None:
        """Encode on ``threads`` threads, each a batch of pictures of its own."""
        self._renderer = renderer
        self._vision = vision
        self._queries = queries
        self._max_tokens = max_tokens
        self._threads = threads

    @property
    def picture_bytes(self) -> int:
        """Return how much memory an encoded picture takes."""
        return self._renderer.image_tokens * self._vision.token_bytes

    def encode(
        self,
        examples: Sequence[Example],
        image: Callable[[str], Image.Image],
        routing: RoutingSettings,
        *,
        check: Callable[[], None] = lambda: None,
    ) -> Encoded:
        """Encode examples; ``image`` loads a picture by name, ``check`` may raise to interrupt."""
        names = list(dict.fromkeys(example.image for example in examples if example.image is not None))
        pictures, pooled = self._encode_pictures(names, image, check)
        place = {name: index for index, name in enumerate(names)}
        kept: list[Example] = []
        samples: list[Sample] = []
        prefixes: dict[Prefix, int] = {}
        texts: list[str] = []
        for example in examples:
            picture = None if example.image is None else place[example.image]
            laid_out = self._lay_out(example, picture)
            if laid_out is None:
                continue
            prefix, tail, answer, text = laid_out
            number = prefixes.setdefault(prefix, len(prefixes))
            samples.append(Sample(number, tail, answer, turns_of(answer), len(samples)))
            kept.append(example)
            texts.append(text)
        rows = [None if example.image is None else pooled[place[example.image]] for example in kept]
        queries = self._queries.encode(texts, rows, routing).clone()
        return Encoded(
            tuple(kept), tuple(samples), tuple(prefixes), pictures, queries, dropped=len(examples) - len(kept)
        )

    def _encode_pictures(
        self, names: Sequence[str], image: Callable[[str], Image.Image], check: Callable[[], None]
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return all pictures as one tensor on the CPU, filled in place: no second copy of it ever exists."""
        if not names:
            return None, []
        one = self._vision.encode([image(names[0])])[0].embeds
        pictures = torch.empty(len(names), *one.shape, dtype=one.dtype)

        def fill(start: int) -> list[Tensor]:
            part = names[start : start + PICTURES_AT_ONCE]
            features = self._vision.encode([image(name) for name in part])
            for place, feature in enumerate(features, start):
                pictures[place] = feature.embeds
            return [feature.pooled for feature in features]

        pooled: list[Tensor] = []
        with ThreadPoolExecutor(self._threads) as pool:
            filled = [pool.submit(fill, start) for start in range(0, len(names), PICTURES_AT_ONCE)]
            try:
                for future in filled:
                    check()
                    pooled += future.result()
            finally:
                pool.shutdown(cancel_futures=True)
        return pictures, pooled

    def _lay_out(
        self, example: Example, picture: int | None
    ) -> tuple[Prefix, tuple[int, ...], tuple[bool, ...], str] | None:
        rendered = self._renderer.training(example.turns, images=0 if picture is None else 1)
        if len(rendered.input_ids) > self._max_tokens:
            return None
        prefix, tail = rendered.split("after_image")
        answer = rendered.labels_mask[len(prefix) :]
        return Prefix(tuple(prefix), picture), tuple(tail), tuple(answer), rendered.prompt.query_text


def turns_of(answer: Sequence[bool]) -> tuple[int, ...]:
    """Number the runs of wanted tokens: the first answer is 0; other tokens get the number before them."""
    turns, number, inside = [], -1, False
    for wanted in answer:
        number += int(wanted and not inside)
        inside = wanted
        turns.append(number)
    return tuple(turns)
