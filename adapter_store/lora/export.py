"""Write increments as a plain PEFT LoRA folder.

A request's coefficients c (eq. 5) add ``dW = sum_n c_n B_n A_n`` to every adapted linear. Stacked over the
rows with c_n != 0 that is one LoRA of scaling 1: ``lora_A = [A_n]``, ``lora_B = [c_n B_n]``, r is their rank
together.

A plain LoRA acts on all tokens. In a lineage with span "all" so do the increments, and outputs are equal
everywhere. With span "after_image" (the default) they act behind the picture only: outputs are equal for the
tokens after the picture, given the base's own keys and values of the prefix. Whoever lets the LoRA act on the
prefix, too, gets other outputs. Without a picture they are equal everywhere.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor

from adapter_store.errors import InputError
from adapter_store.lora import ABOUT_FILE, CONFIG_FILE, README_FILE, TENSORS_FILE
from adapter_store.lora.config import room_for
from adapter_store.lora.paths import pattern_of
from adapter_store.routing import contextual
from adapter_store.state import AdapterState, Span

NEGLIGIBLE = 1e-9
"""Share of the largest coefficient up to which another one counts as zero (closed contexts leave 1e-13)."""
_SPAN_NOTES: dict[Span, str] = {
    "all": "The version acts on all tokens, as a LoRA does: outputs are equal everywhere.",
    "after_image": (
        "The version acts behind the picture only, a LoRA on all tokens: outputs are equal for the tokens"
        " after the picture if the prefix, picture included, is run with the adapter disabled and its keys"
        " and values are kept; without a picture they are equal everywhere."
    ),
}
_MEAN_NOTE = (
    "The coefficients are the mean over the task's questions; those of a single question differ from them."
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Say where a LoRA comes from: a version's task, or what answers one question.

    ``exact`` is false where ``c`` is a mean over questions whose own coefficients differ.
    """

    base: str
    base_digest: str
    version: str
    task: str | None
    question: str | None
    exact: bool = True


def task_coefficients(state: AdapterState, task: str) -> tuple[Tensor, bool]:
    """Return a task's coefficients ``[N]`` and whether each of its questions has just these.

    ``a`` is the task's recorded usage, ``c = a + k`` with its contextual part (eq. 4). It is exact where the
    task has as many increments as answer (M = S), so that all of them share their keys; else it is the mean.

    Raises:
        NotFoundError: the state does not know the task.
        InputError: no usage is recorded for it, or it has branches, which one LoRA cannot hold.
    """
    rows = state.rows_of(task)
    if state.branches(task) > 1:
        raise InputError(
            f"task {task!r} was learned in {state.branches(task)} shapes, each with increments of its own;"
            " one LoRA holds one of them: export one of the task's questions",
            param="task",
        )
    a = state.usage[state.task_index(task)][None]
    if not bool(a.any()):
        raise InputError(
            f"no usage of increments is recorded for task {task!r}; export one of its questions", param="task"
        )
    keys = state.keys[rows]
    same = len(rows) == state.routing.top_m and bool((keys == keys[:1]).all())
    return (a + contextual(state, a))[0], same


def lora_tensors(state: AdapterState, c: Tensor, paths: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Return PEFT's tensors: ``lora_A`` ``[R, d_in]`` and ``lora_B`` ``[d_out, R]`` of every adapted linear.

    Args:
        state: the version's state.
        c: coefficients ``[N]``.
        paths: full module paths of the adapted linears, by target, in layer order.

    Raises:
        InputError: all coefficients are zero, so the plain base answers.
    """
    c = c.detach().cpu().float()
    rows = (c.abs() > NEGLIGIBLE * c.abs().amax()).nonzero().flatten() if c.numel() else torch.zeros(0)
    if not len(rows):
        raise InputError(
            "the plain base answers this request: no increment takes part, so there is no LoRA to export;"
            " /v1/routing:explain shows the cosines and the bar"
        )
    tensors: dict[str, Tensor] = {}
    for target in state.targets:
        scaled = state.up[target][:, rows] * c[rows][None, :, None, None]
        for layer, path in enumerate(paths[target]):
            name = f"base_model.model.{path}"
            tensors[f"{name}.lora_A.weight"] = state.down[target][layer, rows].flatten(0, 1).contiguous()
            tensors[f"{name}.lora_B.weight"] = scaled[layer].permute(1, 0, 2).flatten(1, 2).contiguous()
    return tensors


def lora_files(
    state: AdapterState, c: Tensor, paths: Mapping[str, Sequence[str]], origin: Origin
) -> dict[str, bytes]:
    """Return the files of the folder by name: configuration, tensors, README and ``strata.json``.

    Raises:
        InputError: all coefficients are zero, so the plain base answers.
    """
    tensors = lora_tensors(state, c, paths)
    rank = next(iter(tensors.values())).shape[0]
    notes = [_SPAN_NOTES[state.span], *([] if origin.exact else [_MEAN_NOTE])]
    top_m = state.routing.top_m
    if rank > state.rank * top_m:
        room = room_for(rank, state.rank, top_m)
        notes.append(f"Rank {rank} is more than an import into this lineage takes: {room}.")
    about = {**asdict(origin), "span": state.span, "rank": rank, "notes": notes}
    config = _config(pattern_of(path for group in paths.values() for path in group), rank, origin.base)
    metadata = {"format": "pt", "strata": json.dumps(about)}
    return {
        CONFIG_FILE: _json(config),
        TENSORS_FILE: dump_tensors(tensors, metadata),
        README_FILE: _readme(about).encode(),
        ABOUT_FILE: _json(about),
    }


def packed(files: Mapping[str, bytes]) -> bytes:
    """Return the files as a zip; the same files give the same bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = 0o644 << 16
            archive.writestr(member, content)
    return stream.getvalue()


def _config(targets: str, rank: int, base: str) -> dict[str, Any]:
    """Return the configuration; ``lora_alpha`` = r makes PEFT's scaling 1."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "target_modules": targets,
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def _readme(about: Mapping[str, Any]) -> str:
    asked = about["question"] is not None
    what = "the increments that answer one question" if asked else f"task `{about['task']}`"
    notes = "\n".join(f"- {note}" for note in about["notes"])
    return _README.format(what=what, notes=notes, **{k: about[k] for k in ("base", "base_digest", "version")})


_README = """---
library_name: peft
tags: [lora, llava]
---
# LoRA of a Strata version

Made from version `{version}`, {what}, for the base `{base}` (sha256 `{base_digest}`).

{notes}

```python
from peft import PeftModel
from transformers import LlavaForConditionalGeneration

base = LlavaForConditionalGeneration.from_pretrained("PATH OR ID OF THE BASE")
model = PeftModel.from_pretrained(base, "THIS FOLDER")
# Where the version acts behind the picture only, run the prefix without the adapter:
#   with model.disable_adapter():
#       kept = model(input_ids=prefix, pixel_values=pixels, use_cache=True).past_key_values
#   logits = model(input_ids=rest, past_key_values=kept).logits
```
"""
