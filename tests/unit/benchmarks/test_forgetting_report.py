"""Reports of the forgetting benchmark: measures from rows, means over seeds, tables and plots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapter_store.errors import InputError
from benchmarks.forgetting.__main__ import chosen_methods
from benchmarks.forgetting.plots import draw_all
from benchmarks.forgetting.records import Setup, add_record, read_records
from benchmarks.forgetting.report import as_markdown, final_scores, summary, write_report
from benchmarks.forgetting.running import Measured


def run(method: str, seed: int, last: float) -> dict:
    measured = Measured(method, seed, ("a", "b"), {"a": 0.1, "b": 0.2}, "2 cores", "0f")
    measured.rows = [{"a": 0.9, "b": 0.2}, {"a": last, "b": 0.8}]
    measured.leak = {"a": 0.0, "b": 0.02}
    measured.retention = 1.0
    made = {
        "setup": {"base": "tiny", "train": 9, "test": 5, "epochs": 1.0, "source": "packages"},
        "data": str(seed),
        "beside": seed,
    }
    return {**measured.to_dict(), **made}


def test_measures_follow_from_the_rows():
    found = run("strata", 0, 0.7)["measures"]
    assert found["forgetting"] == pytest.approx(0.2)
    assert found["average_accuracy"] == pytest.approx(0.75)
    assert found["backward_transfer"] == pytest.approx(-0.2)
    base = Measured("zero-shot", 0, ("a", "b"), {"a": 0.1, "b": 0.2}, "2 cores", "0f").to_dict()
    assert base["measures"] == {"average_accuracy": pytest.approx(0.15)}


def test_a_task_that_comes_back_is_one_column():
    measured = Measured("strata", 0, ("old", "new", "new"), {"old": 0.0, "new": 0.0}, "2 cores", "0f")
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
    assert "Measured on: 2 cores. 1 of 2 runs shared the machine with others." in text
    assert len(json.loads((tmp_path / "report.json").read_text())["runs"]) == 2
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "matrix-strata.png",
        "stages.png",
        "accuracy-and-forgetting.png",
    }


def test_runs_that_were_asked_something_else_do_not_stand_in_one_table(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    add_record(tmp_path, run("strata", 0, 0.7))
    Setup("tiny", 9, 5, 1.0).check(read_records(tmp_path))
    with pytest.raises(InputError, match=r"base tiny, not embedded; epochs 1\.0, not 2"):
        Setup("embedded", 9, 5, 2.0).check(read_records(tmp_path))
    add_record(tmp_path, run("joint", 1, 0.7))
    with pytest.raises(InputError, match="other pictures"):
        add_record(tmp_path, {**run("joint", 0, 0.7), "data": "x"})
    with pytest.raises(InputError, match="another base"):
        add_record(tmp_path, {**run("joint", 0, 0.7), "base_digest": "1f"})
    (tmp_path / "runs" / "oracle-0.json").write_text(json.dumps({"method": "oracle", "seed": 0}))
    with pytest.raises(InputError, match=r"oracle-0\.json was written by another build"):
        read_records(tmp_path)
    for damaged in (b"", b"{", b"\xff\xfe"):
        (tmp_path / "runs" / "oracle-0.json").write_bytes(damaged)
        with pytest.raises(InputError, match=r"oracle-0\.json is damaged"):
            read_records(tmp_path)
    (tmp_path / "runs" / "oracle-0.json").write_text("[1]")
    with pytest.raises(InputError, match="another build"):
        read_records(tmp_path)


def test_methods_that_mean_nothing_on_a_stream_are_left_out_or_refused():
    assert "joint" in chosen_methods(["baselines"], "domain")
    assert {"oracle", "joint"}.isdisjoint(chosen_methods(["baselines"], "revisit"))
    with pytest.raises(InputError, match="joint means nothing on few-16"):
        chosen_methods(["joint", "strata"], "few-16")
