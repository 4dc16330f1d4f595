"""Each serving program once, small, with real processes on the tiny base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.beside.__main__ import main as beside
from benchmarks.gateway.__main__ import main as gateway
from benchmarks.rated import KINDS
from benchmarks.rated import main as rated
from benchmarks.swap.__main__ import main as swap


def flags(base: Path, record: Path) -> list[str]:
    return ["--base", str(base), "--device", "cpu", "--threads", "1", "--json", str(record)]


def test_swaps_fail_no_request_and_change_no_answer(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked = [*flags(tiny_base, tmp_path / "swap.json"), "--plots", str(tmp_path / "plots")]
    small = ["--rate", "8", "--seconds", "4", "--rounds", "1", "--versions", "6", "--pictures", "4"]
    assert swap([*asked, *small, "--bytes", "40000", "--max-tokens", "8"]) == 0
    assert "failed: 0 (goal 0)" in capsys.readouterr().out
    record = json.loads((tmp_path / "swap.json").read_text())
    assert [report["size"] for report in record["reports"]] == ["embedded", "7B"]
    under = [phase for phase in record["phases"] if phase["kind"] == "swaps"]
    kinds = [[swapped["kind"] for swapped in phase["swaps"]] for phase in under]
    assert kinds == [["promoted", "promoted", "rolled back", "promoted", "promoted", "refused"]] * 2
    small_size, large_size = (report["size_bytes"] for report in record["reports"])
    assert small_size < 40_000 <= large_size
    served = {a["version"] for phase in record["phases"] for a in phase["answers"]}
    assert not served & {s["version"] for p in under for s in p["swaps"] if s["kind"] == "refused"}
    assert all(seconds >= 0 for phase in under for s in phase["swaps"] for seconds in s["parts"].values())
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"gaps-{what}-{size}.png" for what in ("over-time", "cumulative") for size in ("embedded", "7B")
    }


def test_the_gateway_is_measured_beside_its_engine(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small = ["--concurrent", "4", "--repeats", "2", "--max-tokens", "6"]
    assert gateway([*flags(tiny_base, tmp_path / "gateway.json"), *small]) == 0
    assert "overhead of HTTP" in capsys.readouterr().out
    record = json.loads((tmp_path / "gateway.json").read_text())
    assert [load["tokens"] for load in record["http"]] == [load["tokens"] for load in record["direct"]]
    assert all(0 < share["share"] < 1 for share in record["routing"])


def test_a_canary_and_feedback_are_measured_beside_plain_questions(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small = ["--concurrent", "4", "--repeats", "1", "--max-tokens", "4", "--weight", "0.5"]
    assert rated([*flags(tiny_base, tmp_path / "rated.json"), *small]) == 0
    assert "| canary and corrections |" in capsys.readouterr().out
    loads = {load["kind"]: load for load in json.loads((tmp_path / "rated.json").read_text())["loads"]}
    assert set(loads) == set(KINDS)
    assert len({load["tokens"] for load in loads.values()}) == 1
    assert [loads[kind]["by_canary"] > 0 for kind in KINDS] == [False, True, True]


def test_a_real_worker_learns_beside_a_real_gateway(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small = ["--seconds", "4", "--rounds", "1", "--rate", "4", "--pictures", "4", "--taught", "24"]
    asked = flags(tiny_base, tmp_path / "beside.json")
    assert beside([*asked, *small, "--worker-threads", "1", "--max-tokens", "8"]) == 0
    assert "0 failed" in capsys.readouterr().out
    record = json.loads((tmp_path / "beside.json").read_text())
    trained = {phase["kind"]: phase["training"] for phase in record["phases"]}
    assert trained["both"] > 0
    assert trained["training"] > 0
    assert all(phase["answers"] for phase in record["phases"] if phase["kind"] != "training")
