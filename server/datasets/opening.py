"""Open the data sets of a gateway's settings, for the gateway and for checks without one: the same report."""

from __future__ import annotations

from pathlib import Path

from adapter_store.base.download import default_cache_dir
from adapter_store.datasets import DatasetStore, Limits
from adapter_store.datasets.held_out import held_out_folder
from adapter_store.datasets.luck import Measuring
from adapter_store.datasets.tokens import TokenCounter, find_tokenizer
from adapter_store.settings import EMBEDDED_BASE
from server.settings import GatewaySettings


def open_datasets(settings: GatewaySettings, root: Path) -> DatasetStore:
    """Return the data sets below ``root`` with what the settings say of bounds, measuring and tokens."""
    return DatasetStore(
        root,
        Limits.of_uploads(settings.max_upload_bytes),
        held_out=held_out_folder(settings.home, settings.model_name),
        count_tokens=_counter(settings),
        measuring=Measuring(settings.max_chance, settings.holdout_ratio),
    )


def _counter(settings: GatewaySettings) -> TokenCounter | None:
    cache = settings.cache or default_cache_dir()
    is_embedded = settings.base in ("", EMBEDDED_BASE)
    return find_tokenizer(settings.base, cache, is_embedded=is_embedded)
