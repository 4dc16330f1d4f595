"""Several benchmarks beside each other: each run is done by one of them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.forgetting.records import claimed, others_under_way


def test_a_claimed_run_is_nobody_elses(tmp_path: Path):
    record = tmp_path / "strata-0.json"
    with claimed(record) as first, claimed(record) as second, claimed(tmp_path / "strata-1.json") as other:
        assert (first, second, other) == (True, False, True)
    with claimed(record) as again:
        assert again
        record.write_text("{}")
    with claimed(record) as done:
        assert not done
    assert sorted(path.name for path in tmp_path.iterdir()) == ["strata-0.json"]


def test_only_programs_that_live_are_counted(tmp_path: Path):
    for stream in ("a", "b"):
        (tmp_path / stream / "runs").mkdir(parents=True)
    own, other = tmp_path / "a" / "runs" / "strata-0.json", tmp_path / "b" / "runs" / "joint-0.json"
    (tmp_path / "b" / "runs" / "oracle-0.lock").touch()  # of a program that was killed
    with claimed(own), claimed(other):
        assert others_under_way(tmp_path / "a", own) == 1
    assert others_under_way(tmp_path / "a", own) == 0
