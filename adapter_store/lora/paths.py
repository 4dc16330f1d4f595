"""Say many module paths shortly: those that differ only in the number of their layer as one."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def grouped(paths: Iterable[str]) -> dict[tuple[str, str], list[int]]:
    """Return ``(before, behind) -> layers`` for paths ``<before><layer><behind>``, in order.

    A path without a number is ``(path, "")`` without layers.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for path in paths:
        match = _LAYER.search(path)
        if match is None:
            groups.setdefault((path, ""), [])
        else:
            parts = path[: match.start()], path[match.end() :]
            groups.setdefault(parts, []).append(int(match.group()))
    return groups


def pattern_of(paths: Iterable[str]) -> str:
    """Return the regular expression that matches these paths as a whole, and nothing else."""
    return "|".join(
        re.escape(before) + _one_of(layers) + re.escape(behind)
        for (before, behind), layers in grouped(paths).items()
    )


def described(paths: Iterable[str]) -> str:
    """Return the paths for people, as in ``model.layers.*.self_attn.o_proj (layers 1, 2)``."""
    return "; ".join(
        f"{before}*{behind} (layers {', '.join(map(str, sorted(layers)))})" if layers else before
        for (before, behind), layers in grouped(paths).items()
    )


def _one_of(layers: list[int]) -> str:
    return f"(?:{'|'.join(map(str, layers))})" if layers else ""
