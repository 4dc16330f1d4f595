"""LoRA folders as the PEFT library makes and loads them, on the tiny base."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapter_store.base.load import Base
from adapter_store.lora import CONFIG_FILE, TENSORS_FILE


def peft_folder(base: Base, folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """Save a LoRA with random factors, made by PEFT itself."""
    wanted: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": r".*language_model.*\.o_proj"}
    model = get_peft_model(copy.deepcopy(base.model), LoraConfig(**{**wanted, **config}))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(str(folder))
    return folder


def peft_model(base: Base, folder: Path) -> PeftModel:
    """Load a LoRA folder as anybody would."""
    return PeftModel.from_pretrained(copy.deepcopy(base.model), folder).eval()


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def with_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, **changes}))
    return folder


def with_tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    save_file(change(load_file(folder / TENSORS_FILE)), folder / TENSORS_FILE)
    return folder


def zipped(folder: Path, *, under: str = "", only: tuple[str, ...] | None = None) -> bytes:
    """Return a zip of a folder's files, below ``under`` if given."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(folder.iterdir()):
            if only is None or path.name in only:
                archive.write(path, f"{under}{path.name}")
    return stream.getvalue()
