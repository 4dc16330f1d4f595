"""Run the demo itself, small, on the real base: everything it shows happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from server.demo.asking import Answer, Tally, matches
from server.demo.promises import Outcome, Stage

ROOT = Path(__file__).resolve().parents[2]


def outcome(
    *, second: float = 0.95, kept: float = 0.96, failed: int = 0, versions: tuple[str, ...] = ("v1", "v2")
):
    tally = Tally(sent=500, failed=failed, seconds=[0.1] * 500)
    stages = [
        Stage("base", "base", {"digits": 0.1, "animals": 0.2}),
        Stage("digits", "v1", {"digits": 0.97, "animals": 0.2}),
        Stage("animals", "v2", {"digits": kept, "animals": second}),
    ]
    return Outcome(tasks=("digits", "animals"), stages=stages, tally=tally, versions=list(versions))


def broken(found: Outcome) -> list[str]:
    return [promise.text for promise in found.promises() if not promise.kept]


def test_all_promises_kept():
    assert outcome().kept()
    assert outcome().forgetting() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (outcome(second=0.89), "animals at least 90% after animals"),
        (outcome(kept=0.94), "forgetting at most 2 points"),
        (outcome(failed=1), "no request failed"),
        (outcome(versions=("v1",)), "2 versions"),
    ],
)
def test_a_broken_promise_is_named(found: Outcome, text: str):
    assert broken(found) == [text]


def test_a_run_that_stopped_early_keeps_no_promise_it_did_not_measure():
    found = outcome()
    found.stages.pop()
    assert "every task was taught" in broken(found)
    empty = Outcome(tasks=("digits",))
    assert not empty.kept()


def test_answers_match_whole_or_not_at_all():
    assert matches(" Seven.", "seven")
    assert not matches("seventeen", "seven")


def test_tallies_add_up():
    one, two = Tally(), Tally()
    one.add_answer(Answer("a", "v1", 0.1))
    two.add_answer(Answer("b", "v1", 0.3))
    two.add_failure(ValueError("no"))
    one.merge(two)
    assert (one.sent, one.failed, one.versions) == (3, 1, {"v1": 2})
    assert one.latency_seconds(0.99) == 0.3


@pytest.mark.base
@pytest.mark.slow
def test_the_demo_learns_two_tasks_without_failing_a_request(tmp_path: Path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STRATA_")}
    if "STRATA_CACHE" in os.environ:
        kept["STRATA_CACHE"] = os.environ["STRATA_CACHE"]
    words = ["demo", "--json", "--exit", "--pictures", "40", "--train", "200", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "server.cli.main", *words],
        cwd=ROOT, env=kept, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["requests"]["failed"] == 0, found["requests"]["reasons"]
    assert found["requests"]["sent"] > 6 * 40
    assert found["versions"] == ["v1", "v2"], done.stderr
    assert done.returncode == (0 if found["kept"] else 1)
    stages = found["stages"]
    assert stages[1]["accuracy"]["digits"] > stages[0]["accuracy"]["digits"] + 0.3
    assert stages[2]["accuracy"]["animals"] > stages[0]["accuracy"]["animals"] + 0.3
    with Image.open(found["picture"]) as picture:
        assert picture.width > 200
    assert not Path(found["home"]).exists()
