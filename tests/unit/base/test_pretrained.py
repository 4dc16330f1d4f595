"""Check that models that load at the same time leave transformers as it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers import PreTrainedModel

from adapter_store.base import load_base


def test_loading_in_several_threads_leaves_transformers_as_it_was(tiny_base: Path):
    """Without a lock three threads leave weights of all later models untied, in nearly every run."""
    before = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(load_base, [tiny_base] * 12))
    assert PreTrainedModel.tie_weights is before
