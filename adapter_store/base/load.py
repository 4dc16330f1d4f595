"""Load a LLaVA base, frozen, from a folder or a hub id."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapter_store.base.assemble import ENCODER_FOLDER, MANIFEST
from adapter_store.base.trained_part import CALIBRATION_FILE
from adapter_store.errors import BaseModelError, NotALlava

_HEADER_LIMIT_BYTES = 100 << 20


@dataclass(frozen=True, slots=True)
class Base:
    """Hold a frozen LLaVA with everything that belongs to it.

    Attributes:
        model: `LlavaForConditionalGeneration` in evaluation mode, no parameter requires a gradient.
        processor: Its `LlavaProcessor`.
        tokenizer: The processor's tokenizer.
        base_id: Human-readable name of the base.
        digest: Identity of its weights; an adapter state made for another digest is refused.
        image_token_id: Token that stands for one patch of a picture.
        image_query_mean: `[vision hidden]` mean of mean-pooled tower outputs on generic pictures, or None.
        sentence_encoder: Folder of the sentence encoder, or None if the base carries none.
        path: Folder that everything was read from.
    """

    model: Any
    processor: Any
    tokenizer: Any
    base_id: str
    digest: str
    image_token_id: int
    image_query_mean: Tensor | None
    sentence_encoder: Path | None
    path: Path


def load_base(path_or_hub_id: str | Path, *, dtype: str | torch.dtype = "auto", device: str = "cpu") -> Base:
    """Load a LLaVA and freeze it.

    Args:
        path_or_hub_id: A local folder, or the id of a hub repository (needs a reachable hub or its cache).
        dtype: As `from_pretrained` takes it; "auto" keeps the stored one.
        device: Where the model goes.

    Raises:
        NotALlava: If the configuration is not of type `llava`.
        BaseModelError: If the folder is missing or incomplete.
    """
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    folder = resolve_folder(path_or_hub_id)
    _check_is_llava(folder)
    try:
        model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        model.to(device)
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"the LLaVA in {folder} cannot be loaded: {error}; fetch or assemble it anew"
        ) from error
    model.requires_grad_(requires_grad=False)
    model.eval()
    manifest = _manifest(folder)
    encoder, calibration = folder / ENCODER_FOLDER, folder / CALIBRATION_FILE
    return Base(
        model=model,
        processor=processor,
        tokenizer=processor.tokenizer,
        base_id=manifest["base_id"] if manifest else Path(path_or_hub_id).name,
        digest=manifest["digest"] if manifest else weights_digest(folder),
        image_token_id=int(model.config.image_token_id),
        image_query_mean=_read_mean(calibration) if calibration.is_file() else None,
        sentence_encoder=encoder if encoder.is_dir() else None,
        path=folder,
    )


def resolve_folder(path_or_hub_id: str | Path) -> Path:
    """Return the local folder of a base, fetching a hub repository into its own cache if need be.

    Raises:
        BaseModelError: If there is neither a folder nor a reachable repository of that name.
    """
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        return folder.resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=patterns))
    except (OSError, ValueError, HFValidationError) as error:
        raise BaseModelError(
            f"{str(path_or_hub_id)!r} is neither a folder nor a repository that can be fetched ({error}); "
            "give the path of a LLaVA folder"
        ) from error


def weights_digest(folder: Path) -> str:
    """Return the digest of a foreign base: sha256 over its configuration and weight files' headers and sizes.

    A header names every tensor with type, shape and place; reading all of a large model would take minutes.

    Raises:
        BaseModelError: If there are no safetensors files or one is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BaseModelError(
            f"{folder} holds no *.safetensors files; convert the model's weights to safetensors"
        )
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in files:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(_HEADER_LIMIT_BYTES, file.stat().st_size):
                raise BaseModelError(
                    f"{file} is not a safetensors file: its header length is {length}; fetch it again"
                )
            digest.update(stream.read(length))
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
    return digest.hexdigest()


def _check_is_llava(folder: Path) -> None:
    path = folder / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise BaseModelError(f"{path} cannot be read as a model configuration: {error}") from error
    if kind != "llava":
        raise NotALlava(
            f"{folder} holds a model of type {kind!r}, expected 'llava'; "
            "give the folder or id of a LlavaForConditionalGeneration checkpoint"
        )


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"base_id": str(content["base_id"]), "digest": str(content["digest"])}
    except (ValueError, KeyError) as error:
        raise BaseModelError(
            f"{path} is damaged ({error!r}); remove the folder so that it is assembled anew"
        ) from error


def _read_mean(path: Path) -> Tensor:
    from safetensors.torch import load_file

    return load_file(path)["image_query_mean"].float()
