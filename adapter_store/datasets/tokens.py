"""Count tokens with the tokenizer of a base, without loading the base or torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

EMBEDDED_PATTERN = "strata-base-*/tokenizer.json"
"""Where an assembled embedded base has its tokenizer below the cache; all of them have the same one."""


class TokenCounter:
    """Count tokens; the tokenizer is loaded at the first call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokenizer: Any = None

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has, special ones left out."""
        if self._tokenizer is None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(self._path))
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding.ids) for encoding in found]


def find_tokenizer(base: str, cache: Path, *, is_embedded: bool) -> TokenCounter | None:
    """Return the counter of a base that lies on this machine, None if it is not here (yet).

    Args:
        base: folder or hub id of a LLaVA.
        cache: where the embedded base is assembled.
        is_embedded: whether the embedded base is meant.
    """
    if is_embedded:
        path = next(iter(sorted(cache.glob(EMBEDDED_PATTERN))), None)
    elif Path(base).is_dir():
        path = Path(base) / "tokenizer.json"
    else:
        path = _in_hub_cache(base)
    return TokenCounter(path) if path is not None and path.is_file() else None


def _in_hub_cache(base: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(base, "tokenizer.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
