"""Thousands of made-up requests, drawn from /openapi.json: no 500, and no status that is not described there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import RunningGateway

schemathesis: Any = pytest.importorskip(
    "schemathesis", reason="install schemathesis, which the extra dev brings, to draw requests"
)

SEED = 20261126
SECONDS = 75.0
"""For all endpoints together."""
"""They follow a job or would end this server's own work."""


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[RunningGateway]:
    """Return a gateway of its own: what made-up requests leave behind bothers no other test."""
    gateway = RunningGateway(tmp_path_factory.mktemp("home"), tiny_base, default_max_tokens=4)
    try:
        yield gateway.wait_ready()
    finally:
        gateway.stop()
