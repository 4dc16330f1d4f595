"""Fixtures that every kind of test may use: the tiny real base, built once per run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from adapter_store.base.load import Base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random LLaVA with its sentence encoder."""
    from tests.tiny_llava import build_tiny_llava

    return build_tiny_llava(tmp_path_factory.mktemp("tiny_base"))


@pytest.fixture(scope="module")
def loaded_tiny_base(tiny_base: Path) -> Base:
    """Return the tiny base, loaded as every program loads a base (float32, CPU).

    Each module has its own: increments that one leaves on the model are not the next one's.
    """
    from adapter_store.base.load import load_base

    return load_base(tiny_base, dtype="float32", device="cpu")
