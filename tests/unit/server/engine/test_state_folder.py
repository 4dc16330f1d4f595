"""Files on their way to workers: private, known by their hash, and gone with whoever left them."""

from __future__ import annotations

import hashlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from adapter_store.state import AdapterState
from server.engine.vllm_client import state_file
from server.engine.vllm_client.state_file import StateFolder


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state_file, "_MEMORY", tmp_path)
    return tmp_path


@pytest.fixture
def folder() -> Iterator[StateFolder]:
    folder = StateFolder()
    yield folder
    folder.close()


def state() -> AdapterState:
    empty = AdapterState.empty("base", {"o_proj": (2, 4, 4)}, 3, rank=2)
    return empty.expand("task", rows=3, generator=torch.Generator().manual_seed(0))


def test_a_file_is_what_was_announced_and_nobody_elses(parent: Path, folder: StateFolder) -> None:
    file = folder.write(state(), torch.float64)
    data = file.path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == file.digest
    assert torch.equal(load(data)["down.o_proj"], state().down["o_proj"].double())
    assert file.rank == 6
    assert file.path.parent.stat().st_mode & 0o777 == 0o700
    folder.close()
    assert list(parent.iterdir()) == []


def test_what_a_killed_gateway_left_goes_and_what_lives_stays(parent: Path, folder: StateFolder) -> None:
    kept = folder.write(state(), torch.float32).path
    code = (
        "import os, sys, torch; from pathlib import Path;"
        "from server.engine.vllm_client import state_file as s;"
        "from tests.unit.server.engine.test_state_folder import state;"
        "s._MEMORY = Path(sys.argv[1]); s.StateFolder().write(state(), torch.float32); os._exit(9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(parent)], cwd=Path(__file__).parents[4])
    assert ended.returncode == 9
    assert len(list(parent.iterdir())) == 2
    other = StateFolder()
    other.write(state(), torch.float32)
    assert kept.exists()
    assert len(list(parent.iterdir())) == 2, "the killed one's folder is gone, a new one is there"
    other.close()


def test_a_folder_that_somebody_removed_is_made_anew(folder: StateFolder) -> None:
    shutil.rmtree(folder.write(state(), torch.float32).path.parent)
    assert folder.write(state(), torch.float32).path.exists()


def test_a_folder_of_another_user_is_left_alone(
    parent: Path, folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = parent / "strata-banks-foreign"
    foreign.mkdir()
    (foreign / "lock").touch()
    monkeypatch.setattr(state_file.os, "geteuid", lambda: foreign.stat().st_uid + 1)
    folder.write(state(), torch.float32)
    assert foreign.exists()


def test_no_half_file_stays_where_there_is_no_room(parent: Path, folder: StateFolder) -> None:
    whole = folder.write(state(), torch.float32).path
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, usual[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            folder.write(state(), torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert list(parent.glob("*/*.safetensors")) == [whole]
