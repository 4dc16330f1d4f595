"""How a state lies on disk, and what is checked before a byte of it is believed.

``state.json`` names every size, so the exact length of ``state.safetensors`` is known before it is read; the
header is checked against the expected tensors before they are made. Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from adapter_store.durable import write_durably
from adapter_store.errors import BaseMismatch, InputError, StateInvalid
from adapter_store.names import check_task_name
from adapter_store.state import AdapterState, RoutingMode, RoutingSettings, Span

TENSORS_FILE = "state.safetensors"
RECORD_FILE = "state.json"
FORMAT = 2
_MAX_RECORD_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20
_MAX_TENSOR_BYTES = 1 << 34
_TARGET = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}")
_DTYPES = {"F32": torch.float32, "I64": torch.int64}
_UNIT_TOLERANCE = 1e-3
_UNUSABLE = "this adapter state cannot be used"
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""What is wrong with the files; any other OSError is a fault of disk or network, which may pass."""
_Table = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    layers: int = Field(ge=1, le=1024)
    d_in: int = Field(ge=1, le=1 << 20)
    d_out: int = Field(ge=1, le=1 << 20)


class _Routing(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    mode: RoutingMode
    top_m: int = Field(strict=True)
    tau: float
    text_weight: float
    image_weight: float


class _Record(BaseModel):
    """Mirror ``state.json``; bounds keep a hostile record from asking for absurd memory."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int
    base_digest: str = Field(max_length=256)
    rank: int = Field(ge=1, le=1024, strict=True)
    span: Span
    routing: _Routing
    tasks: tuple[str, ...] = Field(max_length=4096)
    rows: int = Field(ge=0, le=65536, strict=True)
    keys_per_row: int = Field(ge=1, le=256, strict=True)
    query_width: int = Field(ge=1, le=65536, strict=True)
    centroids: int = Field(ge=0, le=65536, strict=True)
    shapes: dict[str, _Shape] = Field(min_length=1, max_length=64)


def save_state(state: AdapterState, folder: Path) -> None:
    """Write ``state`` into ``folder``, the tensors first; each file appears whole or not at all."""
    state.validate()
    folder.mkdir(parents=True, exist_ok=True)
    record = _Record(
        format=FORMAT,
        base_digest=state.base_digest,
        rank=state.rank,
        span=state.span,
        routing=_Routing(**dataclasses.asdict(state.routing)),
        tasks=state.tasks,
        rows=state.rows,
        keys_per_row=state.keys_per_row,
        query_width=state.query_width,
        centroids=state.centroids.shape[0],
        shapes={
            name: _Shape(layers=layers, d_in=d_in, d_out=d_out)
            for name, (layers, d_in, d_out) in state.shapes.items()
        },
    )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors().items()}
    write_durably(folder / TENSORS_FILE, dump_tensors(tensors))
    write_durably(folder / RECORD_FILE, (record.model_dump_json(indent=2) + "\n").encode())


def load_state(folder: Path, *, base_digest: str | None) -> AdapterState:
    """Read and check a state; see ``AdapterState.load``."""
    record = _read_record(folder / RECORD_FILE)
    if base_digest is not None and record.base_digest != base_digest:
        raise BaseMismatch(
            f"this state was made for base {record.base_digest[:16]}, but base {base_digest[:16]} is loaded:"
            " load the base it was made for, or train a new version on this one"
        )
    expected = _expected_tensors(record)
    tensors = _read_tensors(folder / TENSORS_FILE, expected)
    targets = tuple(record.shapes)
    try:
        routing = RoutingSettings(**record.routing.model_dump())
    except TypeError as error:
        raise StateInvalid(f"{RECORD_FILE}: routing is malformed: {error}") from error
    return AdapterState(
        base_digest=record.base_digest,
        targets=targets,
        rank=record.rank,
        span=record.span,
        routing=routing,
        tasks=record.tasks,
        keys=tensors["keys"],
        task_of=tensors["task_of"],
        branch_of=tensors["branch_of"],
        usage=tensors["usage"],
        context=tensors["context"],
        down={name: tensors[f"down.{name}"] for name in targets},
        up={name: tensors[f"up.{name}"] for name in targets},
        centroids=tensors["centroids"],
        centroid_task=tensors["centroid_task"],
    ).validate()


def check_tensors(state: AdapterState) -> None:
    """Raise StateInvalid with every broken rule of ``state`` in one message."""
    faults = _name_faults(state)
    expected = _expected_shapes(state)
    for name, tensor in state.tensors().items():
        dtype, shape = expected[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            found = _describe(tensor.dtype, tuple(tensor.shape))
            faults.append(f"{name} is {found}, expected {_describe(dtype, shape)}")
        elif tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            faults.append(f"{name} holds NaN or infinite values")
    if not faults:
        faults = _value_faults(state)
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise StateInvalid(f"{_UNUSABLE}: {shown}")


def _name_faults(state: AdapterState) -> list[str]:
    faults: list[str] = []
    for task in state.tasks:
        try:
            check_task_name(task)
        except InputError as error:
            faults.append(error.message)
    if len(set(state.tasks)) != len(state.tasks):
        faults.append("a task is named twice")
    if not state.targets or len(set(state.targets)) != len(state.targets):
        faults.append("targets must be named, and each once")
    bad = [name for name in state.targets if not _TARGET.fullmatch(name)]
    faults += [f"target {name[:80]!r} is not a module name" for name in bad]
    if set(state.down) != set(state.targets) or set(state.up) != set(state.targets):
        raise StateInvalid(f"{_UNUSABLE}: down, up and targets do not name the same linears")
    if state.rank < 1:
        faults.append(f"rank is {state.rank}")
    return faults


def _expected_shapes(state: AdapterState) -> _Table:
    for name, tensor in state.tensors().items():
        wanted = {"task_of": 1, "branch_of": 1, "centroid_task": 1, "keys": 3}.get(
            name, 4 if "." in name else 2
        )
        if tensor.ndim != wanted:
            raise StateInvalid(f"{_UNUSABLE}: {name} has {tensor.ndim} dimensions, not {wanted}")
    shapes = {name: (name, *sizes) for name, sizes in state.shapes.items()}
    return _tensor_table(
        rows=state.rows,
        keys=state.keys_per_row,
        width=state.query_width,
        tasks=len(state.tasks),
        centroids=state.centroids.shape[0],
        rank=state.rank,
        shapes=[shapes[name] for name in state.targets],
    )


def _expected_tensors(record: _Record) -> _Table:
    return _tensor_table(
        rows=record.rows,
        keys=record.keys_per_row,
        width=record.query_width,
        tasks=len(record.tasks),
        centroids=record.centroids,
        rank=record.rank,
        shapes=[(name, shape.layers, shape.d_in, shape.d_out) for name, shape in record.shapes.items()],
    )


def _tensor_table(
    *,
    rows: int,
    keys: int,
    width: int,
    tasks: int,
    centroids: int,
    rank: int,
    shapes: list[tuple[str, int, int, int]],
) -> _Table:
    table: _Table = {
        "keys": (torch.float32, (rows, keys, width)),
        "task_of": (torch.int64, (rows,)),
        "branch_of": (torch.int64, (rows,)),
        "usage": (torch.float32, (tasks, rows)),
        "context": (torch.float32, (tasks, tasks)),
        "centroids": (torch.float32, (centroids, width)),
        "centroid_task": (torch.int64, (centroids,)),
    }
    for name, layers, d_in, d_out in shapes:
        table[f"down.{name}"] = (torch.float32, (layers, rows, rank, d_in))
        table[f"up.{name}"] = (torch.float32, (layers, rows, d_out, rank))
    return table


def _value_faults(state: AdapterState) -> list[str]:
    faults: list[str] = []
    if state.rows and float((state.keys.norm(dim=-1) - 1).abs().max()) > _UNIT_TOLERANCE:
        faults.append("keys are not unit rows")
    for name, owner in (("task_of", state.task_of), ("centroid_task", state.centroid_task)):
        if owner.numel() and not 0 <= int(owner.min()) <= int(owner.max()) < len(state.tasks):
            faults.append(f"{name} points outside the {len(state.tasks)} tasks")
    if bool((state.branch_of < 0).any()):
        faults.append("branch_of holds negative values")
    if bool((state.usage < 0).any()):
        faults.append("usage holds negative values")
    if bool(state.context.triu().any()):
        faults.append("context is not strictly lower triangular")
    return faults


def _describe(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


def _read_record(path: Path) -> _Record:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_RECORD_BYTES + 1)
    except _ABSENT as error:
        raise StateInvalid(f"{RECORD_FILE} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_RECORD_BYTES:
        raise StateInvalid(f"{RECORD_FILE} is longer than {_MAX_RECORD_BYTES} bytes: not a state")
    try:
        record = _Record.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        raise StateInvalid(f"{RECORD_FILE} is not a valid record: {place}: {first['msg']}") from error
    if record.format != FORMAT:
        raise StateInvalid(f"{RECORD_FILE} has format {record.format}; this program reads format {FORMAT}")
    return record


def _read_tensors(path: Path, expected: _Table) -> dict[str, Tensor]:
    payload = sum(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in expected.values())
    if payload > _MAX_TENSOR_BYTES:
        raise StateInvalid(f"{RECORD_FILE} asks for {payload} bytes; the limit is {_MAX_TENSOR_BYTES}")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _read_header(file, size)
            if size != 8 + header[1] + payload:
                raise StateInvalid(
                    f"{TENSORS_FILE} is {size} bytes, but {RECORD_FILE} describes {8 + header[1] + payload}:"
                    " a tensor is missing, foreign or of another shape, or the file is cut off"
                )
            _check_header(header[0], expected)
            file.seek(0)
            return dict(load_tensors(file.read()))
    except _ABSENT as error:
        raise StateInvalid(f"{TENSORS_FILE} cannot be read: {error.strerror}") from error
    except SafetensorError as error:
        raise StateInvalid(f"{TENSORS_FILE} is damaged: {error}") from error


def _read_header(file: Any, size: int) -> tuple[dict[str, Any], int]:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
        if start[:2] == b"PK" or start[:1] == b"\x80":
            raise StateInvalid(f"{TENSORS_FILE} is a pickle or a zip archive: only safetensors are read")
        raise StateInvalid(
            f"{TENSORS_FILE} claims a header of {length} bytes in a file of {size}: not a state"
        )
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise StateInvalid(f"{TENSORS_FILE} has a header that is not JSON: the file is damaged") from error
    if not isinstance(header, dict):
        raise StateInvalid(f"{TENSORS_FILE} has a header that is not a JSON object: the file is damaged")
    return header, length


def _check_header(header: dict[str, Any], expected: _Table) -> None:
    names = set(header) - {"__metadata__"}
    if names != set(expected):
        extra, missing = sorted(names - set(expected))[:4], sorted(set(expected) - names)[:4]
        raise StateInvalid(f"{TENSORS_FILE} holds the wrong tensors: unexpected {extra}, missing {missing}")
    for name, (dtype, shape) in expected.items():
        entry = header[name]
        found = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        if not isinstance(found[0], str) or _DTYPES.get(found[0]) != dtype or found[1] != list(shape):
            raise StateInvalid(
                f"{TENSORS_FILE}: {name} is {found[0]}{found[1]}, expected {_describe(dtype, shape)}"
            )
