"""Dropout of rank components."""

from __future__ import annotations

import torch
from torch import Tensor


class Dropout:
    """Draw which rank components act in each row of a batch; the same for every layer and token.

    An increment's components then learn to answer without each other, which costs little on pictures of the
    batch and helps on new ones. Nothing is dropped where an answer is measured or served.
    """

    def __init__(self, share: float, components: int, seed: int) -> None:
        self._share = share
        self._components = components
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, rows: int) -> Tensor | None:
        """Return ``[rows, components]``, 0 or ``1 / (1 - share)``; None without dropout."""
        if not self._share:
            return None
        chance = torch.rand(rows, self._components, generator=self._generator)
        return (chance >= self._share).float() / (1 - self._share)
