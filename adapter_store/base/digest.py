"""Say which weights a foreign base has: sha256 over its configuration and every byte of its weight files.

Two fine-tunes of one model differ in nothing but values, and a state learned on one is noise on the other.
Reading all of a large model takes many seconds, so a digest is remembered with the files' sizes and times.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from adapter_store.base.download import default_cache_dir, file_sha256
from adapter_store.durable import write_durably
from adapter_store.errors import BaseModelError

_HEADER_LIMIT_BYTES = 100 << 20


def weights_digest(folder: Path, cache_dir: Path | None = None) -> str:
    """Return the digest of a base that carries no manifest of ours.

    Args:
        folder: The base; needs `config.json` and `*.safetensors`.
        cache_dir: Where digests are remembered; default `default_cache_dir()`.

    Raises:
        BaseModelError: If there are no safetensors files or one is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BaseModelError(
            f"{folder} holds no *.safetensors files; convert the model's weights to safetensors"
        )
    for file in files:
        _check_header(file)
    remembered = _memory_of([folder / "config.json", *files], cache_dir or default_cache_dir())
    try:
        return str(json.loads(remembered.read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in files:
        digest.update(f"{file.name}:{file_sha256(file)}".encode())
    remembered.parent.mkdir(parents=True, exist_ok=True)
    write_durably(remembered, json.dumps({"folder": str(folder), "digest": digest.hexdigest()}).encode())
    return digest.hexdigest()


def _memory_of(files: list[Path], cache: Path) -> Path:
    """Return where the digest of exactly these files, unchanged since, is remembered."""
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return cache / "digests" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"


def _check_header(file: Path) -> None:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if not 0 < length <= min(_HEADER_LIMIT_BYTES, file.stat().st_size):
        raise BaseModelError(
            f"{file} is not a safetensors file: its header length is {length}; fetch it again"
        )
