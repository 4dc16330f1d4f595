"""Batches of odd shapes are learned or refused with a reason, and what is served never gets worse by them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from PIL import Image
from pydantic import ValidationError

from adapter_store.datasets import Example, Turn
from adapter_store.jobs import Job, JobStatus
from tests.integration.working import COLORS, FAST, Site

Asked = tuple[tuple[int, int, int], str]


def submit(site: Site, task: str | None, asked: Sequence[Asked], question: str, **hyper: float) -> Job:
    """Submit pictures of one color each, with their answers."""
    examples, images = [], {}
    for n, (color, answer) in enumerate(asked):
        buffer = io.BytesIO()
        Image.new("RGB", (28, 28), color).save(buffer, format="PNG")
        images[f"{n}.png"] = buffer.getvalue()
        examples.append(Example(str(n), f"{n}.png", (Turn(question, answer),)))
    ref = site.datasets.put_examples(examples, images)
    return site.queue.submit(Job(lineage="strata", task=task, dataset=ref, hyperparameters={**FAST, **hyper}))


def shades(count: int) -> list[tuple[int, int, int]]:
    """Return that many different colors."""
    return [(n % 256, n // 256, 90) for n in range(count)]


def served(site: Site) -> tuple[str, float]:
    """Return the stable version and its score on the colors."""
    record = site.versions.aliases.get("stable")
    assert record is not None
    matrix = site.versions.manifest(record.version).accuracy
    score = matrix.score(len(matrix.rows) - 1, "colors")
    assert score is not None
    return record.version, score


@pytest.fixture
def taught(site: Site) -> Site:
    """Return a site that serves a version which knows three colors."""
    job = site.finish(site.submit("colors", count=60))
    assert job.gate is not None
    assert job.gate["passed"], job.gate
    return site


OTHER = "What would you call it in your own words?"
ODD: dict[str, tuple[list[Asked], dict[str, float]]] = {
    "one example": ([((1, 2, 3), "odd")], {}),
    "one class": ([(color, "odd") for color in shades(40)], {"epochs": 5}),
    "ten thousand classes": ([(c, f"class {n}") for n, c in enumerate(shades(10_000))], {"epochs": 0.02}),
    "answers of 500 tokens": ([(c, f"{n} " * 250) for n, c in enumerate(shades(20))], {"epochs": 2}),
    "another script": ([(c, ("красный", "синий")[n % 2]) for n, c in enumerate(shades(40))], {"epochs": 5}),
    "pictures all alike": ([((9, 9, 9), ("left", "right")[n % 2]) for n in range(40)], {"epochs": 5}),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_task_is_learned_or_refused_and_the_known_one_keeps_its_score(taught: Site, case: str):
    version, score = served(taught)
    asked, hyper = ODD[case]
    job = taught.finish(submit(taught, "odd", asked, OTHER, **hyper))
    after, kept = served(taught)
    assert kept >= score
    if job.status is JobStatus.FAILED:
        assert job.error is not None
        assert job.error.message
        assert after == version
    else:
        assert job.gate is not None
        assert job.gate["passed"] or job.gate["reasons"]
        assert after == (job.result_version if job.gate["passed"] else version)


def test_batches_for_a_task_that_is_being_trained_wait_and_build_on_it(site: Site):
    first = site.submit("colors", count=60)
    batch: list[Asked] = [
        ((red // 2 + n, green // 2, blue // 2), name)
        for n in range(8)
        for name, (red, green, blue) in COLORS.items()
    ]
    second = submit(site, "colors", batch, "Which color?")
    unnamed = submit(site, None, batch[:12], "Which color?")
    jobs = [site.finish(job) for job in (first, second, unnamed)]
    assert [job.status for job in jobs] == [JobStatus.SUCCEEDED] * 3, [job.error for job in jobs]
    assert [(job.decision, job.task) for job in jobs] == [
        ("expand", "colors"), ("retrain", "colors"), ("retrain", "colors")
    ]  # fmt: skip
    parents = [site.versions.manifest(job.result_version or "").parent for job in jobs]
    assert parents[1] == jobs[0].result_version


def test_a_name_that_only_looks_like_a_known_one_is_another_task(taught: Site):
    """Names are lower case, so no two differ in case alone; the rest is compared as it is."""
    with pytest.raises(ValidationError, match="'Colors' is not allowed"):
        submit(taught, "Colors", [((1, 2, 3), "red")], "Which color?")
    version, score = served(taught)
    wrong: list[Asked] = [((n, 200, n), "red") for n in range(30)]
    job = taught.finish(submit(taught, "color", wrong, "Which color?", epochs=2))
    assert job.status is JobStatus.SUCCEEDED
    assert job.decision == "expand"
    assert job.gate is not None
    assert job.gate["passed"] is False
    assert served(taught) == (version, score)
