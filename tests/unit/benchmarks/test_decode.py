"""The step that is timed is the engine's own, with increments that act."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.decode import ALL_LINEARS, Bench, main


@pytest.mark.parametrize("targets", [("o_proj",), ALL_LINEARS])
def test_each_row_is_computed_with_its_own_bank(targets: tuple[str, ...]) -> None:
    place = {"device": torch.device("cpu"), "dtype": torch.float32}
    bench = Bench("tiny", targets, 64, batch=4, context=20, **place)  # type: ignore[arg-type]
    with torch.inference_mode():
        base, pool, mixed = (bench.runner.decode(bench.rows[name]) for name in ("base", "pool", "two banks"))
    assert not torch.allclose(base, pool)
    assert torch.allclose(pool[::2], mixed[::2], atol=1e-5)
    assert not torch.allclose(pool[1::2], mixed[1::2], atol=1e-3)


def test_the_program_tells_times_ratios_and_floors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "decode.json"
    flags = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--rank", "64", "--context", "20"]
    main([*flags, "--batch", "2", "--steps", "2", "--repeats", "2", "--json", str(record)])
    assert "| two banks |" in capsys.readouterr().out
    figures = json.loads(record.read_text())
    assert 0 < figures["floor"] < 1
    assert figures["floor"] < figures["bytes_floor"] < 1, "keys are read, too"
    assert all(len(times) == 2 and min(times) > 0 for times in figures["seconds"].values())
