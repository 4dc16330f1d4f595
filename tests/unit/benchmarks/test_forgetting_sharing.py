"""Several benchmarks beside each other: each run is done by one of them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.forgetting.records import claimed


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
