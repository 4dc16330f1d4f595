"""Check what counts as a LLaVA base and what its identity is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapter_store.base.digest import weights_digest
from adapter_store.base.load import dtype_for, load_base, resolve_folder
from adapter_store.errors import BaseModelError, NotALlava


def _folder(path: Path, kind: str = "llava") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    save_file({"w": torch.zeros(4)}, path / "model.safetensors")
    return path


def test_another_kind_of_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotALlava, match="type 'llama', expected 'llava'"):
        load_base(_folder(tmp_path, "llama"))


@pytest.mark.parametrize("content", ["", "[]", "{nonsense"])
def test_a_damaged_configuration_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(BaseModelError, match=r"config\.json"):
        load_base(tmp_path)


def test_a_name_that_is_nothing_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BaseModelError, match=r"neither a folder nor a repository"):
        resolve_folder(tmp_path / "not" / "there")


def test_the_digest_follows_configuration_and_tensors(tmp_path: Path) -> None:
    first, same, other = (_folder(tmp_path / name) for name in ("a", "b", "c"))
    assert weights_digest(first) == weights_digest(same)
    save_file({"w": torch.zeros(5)}, other / "model.safetensors")
    assert weights_digest(first) != weights_digest(other)
    (same / "config.json").write_text(json.dumps({"model_type": "llava", "more": 1}), encoding="utf-8")
    assert weights_digest(first) != weights_digest(same)


def test_weights_must_be_safetensors(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(BaseModelError, match="not a safetensors file"):
        weights_digest(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"no \*.safetensors"):
        weights_digest(folder)


def test_the_digest_sees_a_change_of_one_value(tmp_path: Path) -> None:
    first, tuned = _folder(tmp_path / "a"), _folder(tmp_path / "b")
    save_file({"w": torch.tensor([0.0, 0.0, 0.0, 1e-6])}, tuned / "model.safetensors")
    assert weights_digest(first, tmp_path / "cache") != weights_digest(tuned, tmp_path / "cache")


def test_a_remembered_digest_is_dropped_when_a_file_changes(tmp_path: Path) -> None:
    folder, cache = _folder(tmp_path / "a"), tmp_path / "cache"
    before = weights_digest(folder, cache)
    assert weights_digest(folder, cache) == before
    assert len(list((cache / "digests").iterdir())) == 1
    save_file({"w": torch.ones(4)}, folder / "model.safetensors")
    assert weights_digest(folder, cache) != before


def test_on_a_cpu_without_matrix_units_auto_means_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert dtype_for("cpu") == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert dtype_for("cpu") == "auto"
    assert dtype_for("cuda:1") == "auto"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"cuda:3.*torch sees no CUDA device"):
        load_base(_folder(tmp_path), device="cuda:3")
