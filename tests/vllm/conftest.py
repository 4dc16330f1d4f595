"""Run the scenarios that the collected tests ask for, two at a time, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 600
AT_ONCE = 2
NEWER_RUNNER = {
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "TRITON_INTERPRET": "1",
    "PYTHONPATH": str(Path(__file__).parent / "interpreted_triton"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.vllm)
        if find_spec("vllm") is None:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed: make vllm"))


def run(name: str, folder: Path) -> dict[str, Any]:
    out = folder / f"{name}.json"
    log = folder / f"{name}.log"
    chosen = NEWER_RUNNER if name.startswith("newer_") else {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **chosen}
    with log.open("w") as sink:
        subprocess.run(
            [sys.executable, "-m", "tests.vllm.scenario", name, str(out)],
            cwd=ROOT,
            env=environment,
            stdout=sink,
            stderr=subprocess.STDOUT,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    assert out.exists(), f"{name} ended without a result:\n{log.read_text()[-6000:]}"
    return json.loads(out.read_text())


@pytest.fixture(scope="session")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[dict[str, Any]]]]:
    """Start every scenario that a collected test names with ``@pytest.mark.parametrize("scenario", ...)``."""
    folder = tmp_path_factory.mktemp("vllm")
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    named = [call.params["scenario"] for call in calls if call is not None and "scenario" in call.params]
    wanted = list(dict.fromkeys(named))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(run, name, folder) for name in wanted}


@pytest.fixture
def result(results: dict[str, Future[dict[str, Any]]], scenario: str) -> dict[str, Any]:
    return results[scenario].result()


@pytest.fixture
def equal(result: dict[str, Any]) -> Callable[[str], None]:
    """Assert that all answers of a part are the oracle's: same tokens, log probabilities within 1e-3."""

    def check(part: str) -> None:
        found = result[part]
        assert found["asked"] > 0
        assert found["equal"] == found["asked"]
        assert found["off"] < 1e-3

    return check
