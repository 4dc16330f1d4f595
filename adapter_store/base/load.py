"""Load a LLaVA base, frozen, from a folder or a hub id."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapter_store.base.assemble import MANIFEST, ensure_embedded_base
from adapter_store.base.digest import weights_digest
from adapter_store.base.pretrained import load_pretrained
from adapter_store.base.sentences import ENCODER_FOLDER, ensure_sentence_encoder
from adapter_store.calibration import CALIBRATION_FILE, ImageCalibration
from adapter_store.errors import BaseModelError, NotALlava
from adapter_store.settings import EMBEDDED_BASE


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
        calibration: What makes pooled picture features comparable, or None.
        sentence_encoder: Folder of the sentence encoder: the base's own, else the pinned one.
        path: Folder that everything was read from.
    """

    model: Any
    processor: Any
    tokenizer: Any
    base_id: str
    digest: str
    image_token_id: int
    calibration: ImageCalibration | None
    sentence_encoder: Path
    path: Path


def load_base(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    cache_dir: Path | None = None,
) -> Base:
    """Load a LLaVA and freeze it.

    Args:
        name: "embedded", a local folder, or the id of a hub repository (needs a reachable hub or its cache).
        dtype: As `from_pretrained` takes it; "auto" suits the device, see `dtype_for`.
        device: Where the model goes; "auto" is a CUDA device if there is one.
        cache_dir: Root of the cache; default `default_cache_dir()`.

    Raises:
        NotALlava: If the configuration is not of type `llava`.
        BaseModelError: If the folder is missing or incomplete, or the device is not there.
    """
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    device = _device_of(device)
    if str(name) == EMBEDDED_BASE:
        name = ensure_embedded_base(cache_dir, progress=False)
    folder = resolve_folder(name)
    _check_is_llava(folder)
    try:
        kind = dtype_for(device) if dtype == "auto" else dtype
        model: Any = load_pretrained(LlavaForConditionalGeneration, folder, dtype=kind)
        model.to(device)
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"the LLaVA in {folder} cannot be loaded: {error}; fetch or assemble it anew"
        ) from error
    model.requires_grad_(requires_grad=False)
    model.eval()
    manifest = _manifest(folder)
    encoder = folder / ENCODER_FOLDER
    return Base(
        model=model,
        processor=processor,
        tokenizer=processor.tokenizer,
        base_id=manifest["base_id"] if manifest else Path(name).name,
        digest=manifest["digest"] if manifest else weights_digest(folder, cache_dir),
        image_token_id=int(model.config.image_token_id),
        calibration=ImageCalibration.load(folder / CALIBRATION_FILE),
        sentence_encoder=encoder if encoder.is_dir() else ensure_sentence_encoder(cache_dir),
        path=folder,
    )


def drop_language_model(base: Base) -> None:
    """Let the language model's weights go, for a program that only encodes pictures; shapes and names stay.

    Tower, projector and everything else of ``base`` work on as before; running the language model does not.
    """
    base.model.model.language_model.to("meta")
    base.model.lm_head.to("meta")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _device_of(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(device)
    except RuntimeError:
        raise BaseModelError(f"there is no device {device!r}: use auto, cpu, cuda or cuda:1") from None
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BaseModelError(f"the device {device!r} is asked for, but torch sees no CUDA device; use cpu")
    return device


def dtype_for(device: str) -> str | torch.dtype:
    """Return the dtype to compute in: as stored on an accelerator, single precision on a CPU.

    A CPU without matrix units for bfloat16 converts every operand, which is slower than computing in float32.
    """
    if torch.device(device).type != "cpu":
        return "auto"
    return "auto" if torch.cpu._is_amx_tile_supported() else torch.float32


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
