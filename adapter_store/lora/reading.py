"""Read a LoRA folder from strangers: every fault at once, only JSON and safetensors, nothing unpickled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adapter_store.datasets.records import FaultList, shown
from adapter_store.lora import CONFIG_FILE, TENSORS_FILE
from adapter_store.lora.config import Scale, check_config, room_for
from adapter_store.lora.paths import described
from adapter_store.state import AdapterState, Shape

MAX_TENSORS_BYTES = 1 << 31
MAX_HEADER_BYTES = 1 << 20
_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<path>.+)\.lora_(?P<side>[AB])\.weight")
_OLDER_PATH = re.compile(r"^language_model\.model\.")
"""How language models of LLaVAs were named before transformers 4.52."""
_DTYPES = ("F64", "F32", "F16", "BF16")
_FOREIGN = (
    ("lora_magnitude_vector", "DoRA's magnitudes cannot become increments; train a plain LoRA"),
    (".bias", "biases cannot become increments; train with bias='none'"),
    ("lora_embedding", "embedding layers are not adapted; leave them out of target_modules"),
    ("embed_tokens", "embedding layers are not adapted; save with save_embedding_layers=False"),
    ("lm_head", "embedding layers are not adapted; save with save_embedding_layers=False"),
    ("", "this tensor is no lora_A or lora_B of a linear; save a plain LoRA"),
)

Sides = dict[str, str]
"""Name of the tensor ``A`` and of ``B`` of one linear."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a LoRA must fit: adapted linears (full paths and shapes by target) and, once taught, the pool.

    ``rank`` and ``top_m`` are None while nothing was taught: then only the trainer knows them.
    """

    paths: Mapping[str, Sequence[str]]
    shapes: Mapping[str, Shape]
    rank: int | None = None
    top_m: int | None = None
    tasks: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, paths: Mapping[str, Sequence[str]], shapes: Mapping[str, Shape], state: AdapterState | None
    ) -> Lineage:
        """Describe the lineage that ``state`` stands in."""
        if state is None:
            return cls(paths, shapes)
        return cls(paths, shapes, state.rank, state.routing.top_m, state.tasks)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return ``(d_in, d_out)`` by path."""
        return {path: self.shapes[target][1:] for target, group in self.paths.items() for path in group}


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA that was found sound: its scaling, and where the factors of each linear lie in the file."""

    file: Path
    rank: int
    scaling: float
    sides: Mapping[str, Sides]

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return ``(A [r, d_in], B [d_out, r])``, float32, by the full path of the linear."""
        with safe_open(self.file, framework="pt") as file:
            return {
                path: (file.get_tensor(sides["A"]).float(), file.get_tensor(sides["B"]).float())
                for path, sides in self.sides.items()
            }


def examine(folder: Path, faults: FaultList, lineage: Lineage | None, task: str | None = None) -> Lora | None:
    """Check a folder with configuration and tensors; note every fault and return the LoRA if there is none.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        faults: grows by what is found.
        lineage: what it must fit; None checks only what can be told without it.
        task: the task that it shall become.
    """
    before = len(faults)
    if lineage is not None and task in lineage.tasks:
        reason = f"the task {task!r} exists already; import under a new name"
        faults.add(None, "task", reason)
    scale = check_config(folder / CONFIG_FILE, faults)
    if scale is not None and lineage is not None:
        _check_rank(scale.rank, lineage, faults)
    header = _header(folder / TENSORS_FILE, faults)
    if header is None:
        return None
    sides = _sides(header, faults)
    _check_shapes(header, sides, scale, lineage, faults)
    _check_values(folder / TENSORS_FILE, header, faults)
    if scale is None or len(faults) > before:
        return None
    return Lora(folder / TENSORS_FILE, scale.rank, scale.scaling, sides)


def filled(state: AdapterState, task: str, lora: Lora, lineage: Lineage) -> AdapterState:
    """Return a state whose fresh increments of ``task`` do what the LoRA does.

    The LoRA's ranks are spread over the task's n increments; the rest stays as new, with up projections of
    zero. Each increment answers with a = 1/n, so ``B`` is scaled by n beside the LoRA's own scaling.
    """
    rows = state.rows_of(task)
    factors = lora.factors()
    down: dict[str, Tensor] = {}
    up: dict[str, Tensor] = {}
    for target in state.targets:
        stacked = state.down[target][:, rows].flatten(1, 2)
        back = torch.zeros(*stacked.shape[:2], state.shapes[target][2])
        for layer, path in enumerate(lineage.paths[target]):
            if path in factors:
                a, b = factors[path]
                stacked[layer, : lora.rank] = a
                back[layer, : lora.rank] = lora.scaling * len(rows) * b.T
        down[target] = stacked.unflatten(1, (len(rows), state.rank))
        up[target] = back.unflatten(1, (len(rows), state.rank)).transpose(2, 3)
    return state.with_rows(rows, down=down, up=up)


def _check_rank(rank: int, lineage: Lineage, faults: FaultList) -> None:
    if lineage.rank is None or lineage.top_m is None or rank <= lineage.rank * lineage.top_m:
        return
    faults.add(
        None, "r", f"rank {rank} is too large: {room_for(rank, lineage.rank, lineage.top_m)}", CONFIG_FILE
    )


def _header(path: Path, faults: FaultList) -> dict[str, Any] | None:
    """Return the tensors that a safetensors file lists, read with bounds; None if it cannot be used."""
    if not path.is_file():
        faults.add(None, "", "the file is missing; pack it beside the other", TENSORS_FILE)
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        reason = None
        if size > MAX_TENSORS_BYTES:
            reason = f"the file has {size} bytes; at most {MAX_TENSORS_BYTES} are accepted"
        elif size < 10 or length > size - 8:
            reason = "the file is cut off or no safetensors file; save the adapter again"
        elif length > MAX_HEADER_BYTES:
            reason = f"the header has {length} bytes; at most {MAX_HEADER_BYTES} are read"
        raw = b"" if reason else file.read(length)
    if reason is None:
        try:
            with safe_open(path, framework="pt"):  # it checks that the header describes just this file
                header = json.loads(raw)
                return {name: entry for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, RecursionError, SafetensorError):
            reason = "the file is damaged or no safetensors file; save the adapter again"
    faults.add(None, "", reason, TENSORS_FILE)
    return None


def _sides(header: Mapping[str, Any], faults: FaultList) -> dict[str, Sides]:
    """Return which tensors are A and B of which linear; note every other tensor by kind."""
    sides: dict[str, Sides] = {}
    strange: dict[str, list[str]] = {}
    for name in header:
        match = _FACTOR.fullmatch(name)
        if match is None:
            reason = next(reason for mark, reason in _FOREIGN if mark in name)
            strange.setdefault(reason, []).append(name)
            continue
        found = sides.setdefault(_OLDER_PATH.sub("model.language_model.", match["path"]), {})
        if match["side"] in found:
            strange.setdefault("another tensor stands for the same factor; keep one", []).append(name)
        found[match["side"]] = name
    for reason, names in strange.items():
        faults.add(None, _first_of(names), reason, TENSORS_FILE)
    halves = sorted(path for path, found in sides.items() if len(found) < 2)
    if halves:
        faults.add(
            None, _first_of(halves), "lora_A or lora_B is missing; save the adapter again", TENSORS_FILE
        )
    if not sides:
        faults.add(None, "", "the file holds no lora_A and lora_B; save a LoRA adapter", TENSORS_FILE)
    return {path: found for path, found in sides.items() if len(found) == 2}


def _check_shapes(
    header: Mapping[str, Any],
    sides: Mapping[str, Sides],
    scale: Scale | None,
    lineage: Lineage | None,
    faults: FaultList,
) -> None:
    sizes = None if lineage is None else lineage.sizes()
    if sizes is not None and (foreign := [path for path in sides if path not in sizes]):
        reason = f"{shown(described(foreign), 600)}: not adapted here; this lineage adapts {described(sizes)}"
        faults.add(None, "target_modules", reason, CONFIG_FILE)
    rank = None if scale is None else scale.rank
    for path, found in sides.items():
        if sizes is not None and path not in sizes:
            continue
        d_in, d_out = (None, None) if sizes is None else sizes[path]
        for side, wanted in (("A", (rank, d_in)), ("B", (d_out, rank))):
            shape = header[found[side]]["shape"]
            if not _is_shape(shape, wanted):
                text = ", ".join("any" if size is None else str(size) for size in wanted)
                reason = f"its shape is {shape}, expected [{text}]"
                faults.add(None, shown(found[side], 160), reason, TENSORS_FILE)


def _is_shape(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        size in (None, found) for found, size in zip(shape, wanted, strict=True)
    )


def _check_values(path: Path, header: Mapping[str, Any], faults: FaultList) -> None:
    """Note tensors that are no floating-point numbers, or not finite as float32."""
    strange = [name for name, entry in header.items() if entry["dtype"] not in _DTYPES]
    if strange:
        reason = f"its numbers are of type {header[strange[0]]['dtype']}; use float32, float16 or bfloat16"
        faults.add(None, _first_of(strange), reason, TENSORS_FILE)
    with safe_open(path, framework="pt") as file:
        broken = [name for name in header if name not in strange and not _is_finite(file.get_tensor(name))]
    if broken:
        reason = "it holds NaN or infinite values; the training that made it diverged"
        faults.add(None, _first_of(broken), reason, TENSORS_FILE)


def _is_finite(tensor: Tensor) -> bool:
    """Tell whether all values are finite, also as float32."""
    return bool(torch.isfinite(tensor.float() if tensor.dtype == torch.float64 else tensor).all())


def _first_of(names: Iterable[str]) -> str:
    """Name the first of several tensors, and how many more there are."""
    first, *rest = sorted(names)
    return shown(first, 160) + (f" and {len(rest)} more" if rest else "")
