"""A correction changes the served answer to its picture, and what other questions are answered stays."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from adapter_store.jobs import Job, JobStatus
from tests.contract.conftest import RunningGateway, wait_for
from tests.contract.pictures import data_url
from tests.integration.working import COLORS, FAST, Site

OTHER = "Please name the paint that covers this old canvas."
Asked = tuple[str, bytes]


def shade(name: str, number: int) -> bytes:
    """Return a picture of a color, another one for each number."""
    red, green, blue = COLORS[name]
    stream = io.BytesIO()
    Image.new("RGB", (28, 28), (red, (green + 3 * number) % 256, (blue + 5) % 256)).save(stream, "PNG")
    return stream.getvalue()


def disc() -> bytes:
    """Return a picture that the task's increments answer and that is like none of its pictures."""
    image = Image.new("RGB", (28, 28), "black")
    ImageDraw.Draw(image).ellipse((6, 6, 22, 22), fill=COLORS["red"])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


class Service:
    """A gateway and a worker of one home."""

    def __init__(self, site: Site) -> None:
        site.settings = site.settings.model_copy(
            update={"rows_per_task": 2, "learning_rate": FAST["learning_rate"]}
        )
        self.site = site
        self.running = RunningGateway(
            site.home, site.base, redis_url=site.url, feedback_count=1, feedback_seconds=0
        ).wait_ready()

    def learned(self, job: Job) -> Job:
        """Run a job to its end; wait until what it made is served."""
        job = self.site.finish(job)
        assert job.status is JobStatus.SUCCEEDED, job.error
        assert job.gate is not None
        assert job.gate["promotion"] == "promoted", job.gate
        alias = "/v1/adapters/strata/aliases/stable"
        wait_for(lambda: self.running.http.get(alias).json().get("served") == job.result_version)
        return job

    def ask(self, question: str, picture: bytes) -> dict[str, Any]:
        body = {"question": question, "image": data_url(picture), "max_tokens": 8}
        return self.running.http.post("/v1/vqa", json=body).json()

    def correct(self, question: str, picture: bytes, right: str, **more: Any) -> Job:
        """Correct an answer and return the job that learns it."""
        body = {
            "rating": "down",
            "question": question,
            "image": data_url(picture),
            "correction": right,
            **more,
        }
        given = self.running.http.post("/v1/feedback", json=body).json()
        assert given["status"] == "queued", given
        return self.site.queue.get(given["job"])


@pytest.fixture
def service(site: Site) -> Iterator[Service]:
    here = Service(site)
    try:
        yield here
    finally:
        here.running.stop()


def test_a_correction_changes_the_answer_to_its_picture_and_no_other(service: Service):
    service.learned(service.site.submit("colors", count=60))
    service.learned(service.site.submit("paints", OTHER, count=60))
    others = [(q, shade(name, n)) for q in ("Which color?", OTHER) for name in COLORS for n in (2, 9)]
    picture = disc()
    before = [service.ask(*asked)["answer"] for asked in others]
    answered = service.ask("Which color?", picture)
    assert answered["task"] == "colors"
    right, other = [name for name in COLORS if name != answered["answer"]][:2]
    job = service.correct("Which color?", picture, right, version=answered["version"])
    assert job.task == "colors"
    service.learned(job)
    assert service.ask("Which color?", picture)["answer"] == right
    assert [service.ask(*asked)["answer"] for asked in others] == before
    service.learned(service.correct("Which color?", picture, other))
    assert service.ask("Which color?", picture)["answer"] == other
    assert [service.ask(*asked)["answer"] for asked in others] == before


def test_what_the_base_answered_is_corrected_in_a_task_of_its_own(service: Service):
    picture, other = shade("red", 5), shade("green", 90)
    before = service.ask("What do you call this?", other)["answer"]
    job = service.correct("What do you call this?", picture, "a brick")
    assert service.learned(job).task == "corrections"
    assert service.ask("What do you call this?", picture)["answer"] == "a brick"
    assert service.ask("Is anything written here?", other)["version"] == "v1"
    service.learned(service.correct("What do you call this?", other, "a leaf", task="corrections"))
    assert service.ask("What do you call this?", other)["answer"] == "a leaf" != before
    assert service.ask("What do you call this?", picture)["answer"] == "a brick"


def test_corrections_that_cost_a_task_what_it_knew_are_held_back(service: Service, tmp_path: Path):
    service.learned(service.site.submit("colors", count=60))
    service.site.settings = service.site.settings.model_copy(update={"branch": False})
    pictures = [shade(name, n) for name in COLORS for n in range(3)]
    before = [service.ask("Which color?", picture)["answer"] for picture in pictures]
    job = service.site.finish(service.correct("Which color?", pictures[0], "nonsense"))
    assert job.gate is not None
    assert not job.gate["passed"], job.gate
    assert any("colors fell" in reason for reason in job.gate["reasons"])
    assert [service.ask("Which color?", picture)["answer"] for picture in pictures] == before
