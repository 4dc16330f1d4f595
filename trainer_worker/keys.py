"""Align a task's keys with its batch's queries (training step 1), then freeze them.

The objective is ``-mean cosine of the selected rows`` (each query selects its best M rows, eq. 2). With unit
rows its minimum for a given selection is closed-form, the normalized sum of the queries that selected a row;
so selection and re-centering alternate until nothing changes. This is exact block descent on that loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ROUNDS = 25
CROWDED_SHARE = 0.6
JITTER = 0.02
OWN_QUANTILE = 0.01
"""Share of a task's own questions that may lie beyond the end of their range."""
OVERLAP_MARGIN = 1e-3
KEYS_OF_A_BATCH = 8
QUERIES_PER_KEY = 32
"""A center of fewer queries is more noise than direction."""
MOST_KEYS = 32
"""Queries have the sentence encoder's width (384, twice that with pictures) whatever the base, so 32 take
96 KiB an increment; one of a 7B (rank 8, 11 layers of 4096 by 4096, float32) has 2.9 MB beside them."""
SAME_KEY = 0.999
"""Keys with a higher cosine become one."""


@dataclass(frozen=True, slots=True)
class AlignedKeys:
    """Unit keys ``[S, k, q]``, the rows' share of picks ``[S]`` and the mean cosine of selected rows."""

    keys: Tensor
    picks: Tensor
    mean_cosine: float
    reseeded: int


def align_keys(
    queries: Tensor, rows: int, top_m: int, generator: torch.Generator, *, exact: bool = False
) -> AlignedKeys:
    """Place ``rows`` keys for one task's queries ``[B, q]`` (unit rows).

    k-means centers start the search; a row that nobody picks is re-seeded at the worst served query; the
    search ends when selections repeat, or before one row is picked by more than 60 % of the queries. When all
    queries are the same (one question, text routing) the centers coincide up to a small jitter: the same M
    rows answer everything and the others stay unused, which costs nothing.

    With ``rows <= top_m`` every row answers every query of the task. All of them then share the same keys,
    one for each kind of query (with ``exact`` one for each query), and are found, or not found, together.
    """
    queries = F.normalize(queries.float(), dim=-1)
    m = min(top_m, rows)
    if m == rows:
        shared = exact_keys(queries, generator) if exact else kinds_of(queries, generator)
        nearest = float((queries @ shared.T).amax(dim=1).mean())
        return AlignedKeys(shared.expand(rows, -1, -1), torch.full((rows,), 1 / rows), nearest, 0)
    keys = _jittered(k_means(queries, rows, generator), generator)
    selected = _select(queries, keys, m)
    reseeded = 0
    for _ in range(MAX_ROUNDS):
        candidate, lost = _recenter(queries, keys, selected, generator)
        reseeded += lost
        changed = _select(queries, candidate, m)
        if torch.bincount(changed.flatten()).max() > CROWDED_SHARE * len(queries):
            break
        keys, same = candidate, torch.equal(changed, selected)
        selected = changed
        if same and lost == 0:
            break
    cosines = (queries @ keys.T).gather(1, selected)
    return AlignedKeys(keys[:, None], _share(selected, rows), float(cosines.mean()), reseeded)


def grown_keys(keys: Tensor, queries: Tensor, generator: torch.Generator) -> Tensor:
    """Return keys ``[S, k', q]`` that find a task's earlier queries and new ones ``[B, q]``, too.

    For rows that share their keys ``[S, k, q]``. The earlier ones stay unless the room is used up: then those
    nearest to each other become one.
    """
    kinds = torch.cat([keys[0], kinds_of(queries, generator)])
    while len(kinds) > 1:
        likeness = (kinds @ kinds.T).fill_diagonal_(-1.0)
        nearest = float(likeness.max())
        if nearest <= SAME_KEY and len(kinds) <= MOST_KEYS:
            break
        first, second = sorted(divmod(int(likeness.argmax()), len(kinds)))
        if nearest <= SAME_KEY:
            kinds[first] = F.normalize(kinds[first] + kinds[second], dim=0)
        kinds = torch.cat([kinds[:second], kinds[second + 1 :]])
    return kinds.expand(len(keys), -1, -1)


def kinds_of(queries: Tensor, generator: torch.Generator) -> Tensor:
    """Return one center ``[k, q]`` for each kind of query ``[B, q]``: unit rows."""
    queries = F.normalize(queries.float(), dim=-1)
    count = max(1, min(KEYS_OF_A_BATCH, len(queries) // QUERIES_PER_KEY))
    return k_means(queries, count, generator)


def exact_keys(queries: Tensor, generator: torch.Generator) -> Tensor:
    """Return a key ``[k, q]`` for every single query ``[B, q]``, of more than ``MOST_KEYS`` for every few."""
    queries = F.normalize(queries.float(), dim=-1)
    return k_means(queries, min(len(queries), MOST_KEYS), generator)


def k_means(queries: Tensor, count: int, generator: torch.Generator, rounds: int = 15) -> Tensor:
    """Return ``count`` spherical k-means centers ``[count, q]`` of unit queries ``[B, q]``.

    Initialization spreads: each next center is the query that is least similar to those chosen. With fewer
    distinct queries than centers some centers repeat.
    """
    first = int(torch.randint(len(queries), (1,), generator=generator))
    chosen = [queries[first]]
    nearest = queries @ chosen[0]
    for _ in range(count - 1):
        chosen.append(queries[int(nearest.argmin())])
        nearest = torch.maximum(nearest, queries @ chosen[-1])
    centers = torch.stack(chosen)
    for _ in range(rounds):
        owner = (queries @ centers.T).argmax(dim=1)
        sums = torch.zeros_like(centers).index_add_(0, owner, queries)
        moved = torch.where(sums.norm(dim=1, keepdim=True) > 1e-6, F.normalize(sums, dim=1), centers)
        if torch.allclose(moved, centers, atol=1e-6):
            break
        centers = moved
    return centers


def _select(queries: Tensor, keys: Tensor, m: int) -> Tensor:
    """Return the indices ``[B, m]`` of each query's best keys, in ascending order to compare selections."""
    return (queries @ keys.T).topk(m, dim=1).indices.sort(dim=1).values


def _recenter(
    queries: Tensor, keys: Tensor, selected: Tensor, generator: torch.Generator
) -> tuple[Tensor, int]:
    """Move each key to the mean of its queries; re-seed the unpicked while distinct queries exist to take."""
    sums = torch.zeros_like(keys)
    sums.index_add_(0, selected.flatten(), queries.repeat_interleave(selected.shape[1], dim=0))
    counts = torch.bincount(selected.flatten(), minlength=len(keys))
    moved = torch.where((counts > 0)[:, None], F.normalize(sums, dim=1), keys)
    unused = (counts == 0).nonzero().flatten().tolist()
    best = (queries @ moved.T).gather(1, selected).mean(dim=1)
    taken = 0
    for row, query in zip(unused, best.argsort().tolist(), strict=False):
        if best[query] > 1 - 10 * JITTER * JITTER:
            break
        moved[row] = _jittered(queries[query : query + 1], generator)[0]
        taken += 1
    return moved, taken


def _share(selected: Tensor, rows: int) -> Tensor:
    return torch.bincount(selected.flatten(), minlength=rows).float() / selected.numel()


def _jittered(keys: Tensor, generator: torch.Generator) -> Tensor:
    """Tilt unit rows by about JITTER so that no two are equal and top-M has no ties."""
    noise = torch.randn(keys.shape, generator=generator) * (JITTER / keys.shape[1] ** 0.5)
    return F.normalize(keys + noise, dim=1)


def stranger_bar(own: Tensor, strangers: Tensor) -> float:
    """Return the cosine under which the plain base answers (tau of eq. 5).

    Halfway between a task's own questions and general ones; just under the task's own where they overlap.

    Args:
        own: best cosines ``[B]`` of the task's training questions with its keys.
        strangers: those ``[n]`` of general questions; without any the bar lies just under the task's own.
    """
    low = float(own.float().quantile(OWN_QUANTILE))
    high = float(strangers.float().quantile(1 - OWN_QUANTILE)) if len(strangers) else low
    return (low + high) / 2 if high < low else float(own.min()) - OVERLAP_MARGIN
