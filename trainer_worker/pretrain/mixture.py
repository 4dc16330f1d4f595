"""Mix the picture sources; every picture follows from a stream name and a number."""

from __future__ import annotations

import random

from trainer_worker.pretrain.charts import chart_picture
from trainer_worker.pretrain.easy import EasyVqa
from trainer_worker.pretrain.picture import Picture
from trainer_worker.pretrain.scenes import scene_picture
from trainer_worker.pretrain.words import word_picture

SHARES: dict[str, float] = {"scenes": 0.6, "easy-vqa": 0.32, "words": 0.04, "charts": 0.04}
"""Part of the pictures that comes from each source."""


class Mixture:
    """Yield pictures of one split.

    Args:
        easy: The easy-VQA split that belongs to the stream.
        stream: Name of the random stream; other names give other pictures.
        vary: Whether to rephrase easy-VQA's questions.
    """

    def __init__(self, easy: EasyVqa, stream: str, vary: bool) -> None:
        self._easy = easy
        self._stream = stream
        self._vary = vary

    def picture(self, index: int) -> Picture:
        """Return picture number `index` of the stream."""
        rng = random.Random(f"{self._stream}-{index}")
        source = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if source == "easy-vqa":
            number = rng.randrange(len(self._easy))
            return self._easy.picture(number, rng if self._vary else None)
        if source == "words":
            return word_picture(rng)
        return chart_picture(rng) if source == "charts" else scene_picture(rng)
