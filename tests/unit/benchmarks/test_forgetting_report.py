"""Reports of the forgetting benchmark: measures from rows, means over seeds, tables and plots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.forgetting.plots import draw_all
from benchmarks.forgetting.report import as_markdown, final_scores, read_records, summary, write_report
from benchmarks.forgetting.running import Measured


def run(method: str, seed: int, last: float) -> dict:
    measured = Measured(method, seed, ("a", "b"), {"a": 0.1, "b": 0.2}, "2 cores")
    measured.rows = [{"a": 0.9, "b": 0.2}, {"a": last, "b": 0.8}]
    measured.leak = {"a": 0.0, "b": 0.02}
    measured.retention = 1.0
    return measured.to_dict()


def test_measures_follow_from_the_rows():
    found = run("strata", 0, 0.7)["measures"]
    assert found["forgetting"] == pytest.approx(0.2)
    assert found["average_accuracy"] == pytest.approx(0.75)
    assert found["backward_transfer"] == pytest.approx(-0.2)
    base = Measured("zero-shot", 0, ("a", "b"), {"a": 0.1, "b": 0.2}, "2 cores").to_dict()
    assert base["measures"] == {"average_accuracy": pytest.approx(0.15)}


def test_a_task_that_comes_back_is_one_column():
    measured = Measured("strata", 0, ("old", "new", "new"), {"old": 0.0, "new": 0.0}, "2 cores")
    measured.rows = [{"old": 0.9, "new": 0.1}, {"old": 0.8, "new": 0.5}, {"old": 0.7, "new": 0.8}]
    matrix = measured.matrix()
    assert matrix.tasks == ("old", "new")
    assert matrix.forgetting_of("old") == pytest.approx(0.2)


def test_the_report_has_means_spreads_json_and_plots(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    for seed, last in ((0, 0.7), (1, 0.9)):
        (tmp_path / "runs" / f"strata-{seed}.json").write_text(json.dumps(run("strata", seed, last)))
    records = read_records(tmp_path)
    assert summary(records)["strata"]["forgetting"]["mean"] == pytest.approx(0.1)
    assert "| strata | 80.0 ± 7.1 |" in as_markdown(records)
    assert "| strata | 80.0 ± 14.1 | 80.0 ± 0.0 |" in final_scores(records)
    write_report(tmp_path)
    draw_all(tmp_path, records)
    text = (tmp_path / "report.md").read_text()
    assert f"# Stream and scale: {tmp_path.name}" in text
    assert "Measured on: 2 cores." in text
    assert len(json.loads((tmp_path / "report.json").read_text())["runs"]) == 2
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "matrix-strata.png",
        "stages.png",
        "accuracy-and-forgetting.png",
    }
