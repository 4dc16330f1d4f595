"""What vLLM leaves around it: names of shared memory, and how much it logs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine.vllm_client.options import VllmOptions, prepare_environment
from server.engine.vllm_plugin.shared_memory import take_names_away

VARIABLES = ("VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS", "VLLM_CONFIGURE_LOGGING", "_STRATA_ENGINE")
MORE = ("VLLM_CPU_OMP_THREADS_BIND", "VLLM_WORKER_MULTIPROC_METHOD", "VLLM_ENABLE_V1_MULTIPROCESSING")


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what the functions set: variables, levels, filters."""
    for name in (*VARIABLES, *MORE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    levels = {name: logging.getLogger(name).level for name in ("vllm", "strata")}
    with warnings.catch_warnings():
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize(
    ("ours", "asked", "level"),
    [
        ("INFO", None, "ERROR"),
        ("DEBUG", None, "DEBUG"),
        ("INFO", "INFO", "INFO"),
        ("DEBUG", "WARNING", "WARNING"),
        ("INFO", "loud", "ERROR"),
    ],
)
def test_vllm_logs_errors_only_unless_asked_for_more(
    quiet: None, monkeypatch: pytest.MonkeyPatch, ours: str, asked: str | None, level: str
) -> None:
    logging.getLogger("strata").setLevel(ours)
    if asked is not None:
        monkeypatch.setenv("VLLM_LOGGING_LEVEL", asked)
    prepare_environment(VllmOptions())
    assert logging.getLevelName(logging.getLogger("vllm").level) == level


def test_only_this_engines_segments_lose_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "vllm_dist_aa-tp:0-[0-1]-cpushm_0"
    other = tmp_path / "vllm_dist_bb-tp:0-[0-1]-cpushm_0"
    for path in (own, other):
        path.write_bytes(b"")
    for identity in ("", "vllm", "elsewhere"):
        monkeypatch.setenv("VLLM_DIST_IDENT", identity)
        take_names_away(tmp_path)
    assert own.exists()
    monkeypatch.setenv("VLLM_DIST_IDENT", "vllm_dist_aa")
    take_names_away(tmp_path)
    take_names_away(tmp_path)
    assert list(tmp_path.iterdir()) == [other]
