"""The keys of a pool as routing reads them: each distinct set once, in float64, kept as long as the state.

All increments of a task share their keys, so a pool of 4,096 increments asks a few hundred directions, and
converting them at every question would cost more than the question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True, slots=True, eq=False)
class KeyTable:
    """Hold the distinct sets of keys of a pool.

    Attributes:
        keys: ``[G * k, q]`` float64, the k keys of each of G sets.
        group: ``[N]`` int64, the set of each increment.
        per_row: k.
        version: change counter of the tensor it was made from.
    """

    keys: Tensor
    group: Tensor
    per_row: int
    version: int

    def cosines(self, unit: Tensor) -> Tensor:
        """Return the cosine of unit queries ``[B, q]`` float64 with each increment's nearest key, ``[B, N]``.

        Computed in float64 and rounded to float32, so that batch mates do not matter.
        """
        sets = len(self.keys) // self.per_row  # not -1: there may be no query
        found = (unit @ self.keys.T).view(len(unit), sets, self.per_row).amax(dim=2).float()
        return found[:, self.group]


_TABLES: WeakIdKeyDictionary = WeakIdKeyDictionary()


def key_table(keys: Tensor, device: torch.device) -> KeyTable:
    """Return the table of ``keys`` ``[N, k, q]`` on ``device``; it is made once per tensor, value and device.

    Neighbors with equal keys are found, which is how a state holds the increments of a task.
    """
    if keys.is_inference():  # such tensors have no change counter
        return _make(keys, device, 0)
    tables = cast("dict[torch.device, KeyTable]", _TABLES.setdefault(keys, {}))
    table = tables.get(device)
    if table is None or table.version != keys._version:
        table = tables[device] = _make(keys, device, keys._version)
    return table


def _make(keys: Tensor, device: torch.device, version: int) -> KeyTable:
    fresh = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    fresh[1:] = (keys[1:] != keys[:-1]).flatten(1).any(dim=1)
    distinct = keys.detach()[fresh].to(device, torch.float64).flatten(0, 1)
    return KeyTable(distinct, (fresh.cumsum(0) - 1).to(device), keys.shape[1], version)
