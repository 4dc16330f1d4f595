"""Batches that must never reach ``stable``: shuffled, all alike, contradicting; and odd ones that may."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence

import pytest
from PIL import Image

from adapter_store.datasets import Example, Turn
from adapter_store.jobs import Job, JobStatus
from tests.integration.working import COLORS, FAST, Site

QUESTION = "Which color?"
WRONG = {"red": "green", "green": "blue", "blue": "red"}


def teach(
    site: Site,
    task: str,
    answer: Callable[[str], str],
    *,
    shade: int,
    question: str = QUESTION,
    count: int = 60,
) -> Job:
    """Submit ``count`` pictures; ``shade`` makes them other pictures than those of another batch."""
    rng = random.Random(shade)
    examples, images = [], {}
    for n in range(count):
        name = list(COLORS)[n % 3]
        color = tuple((value + rng.randrange(40)) % 256 for value in COLORS[name])
        buffer = io.BytesIO()
        Image.new("RGB", (28, 28), color).save(buffer, format="PNG")
        images[f"{n}.png"] = buffer.getvalue()
        examples.append(Example(str(n), f"{n}.png", (Turn(question, answer(name)),)))
    ref = site.datasets.put_examples(examples, images)
    return site.finish(site.queue.submit(Job(lineage="strata", task=task, dataset=ref, hyperparameters=FAST)))


def shuffled(seed: int) -> Callable[[str], str]:
    rng = random.Random(seed)
    return lambda _: rng.choice(list(COLORS))


def stable(site: Site) -> str:
    record = site.versions.aliases.get("stable")
    assert record is not None
    return record.version


def reasons(job: Job) -> str:
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.gate is not None
    return "; ".join(job.gate["reasons"])


def test_poisoned_batches_never_become_stable(site: Site):
    assert reasons(teach(site, "colors", lambda name: name, shade=0)) == ""
    good = stable(site)
    other = "Say what you see in this picture, please."
    for task, answer, question, word in (
        ("noise", shuffled(1), other, "do not seem to belong together"),
        ("one", lambda _: "red", other, "is the same"),
        ("colors", shuffled(2), QUESTION, "fell"),
        ("colors", lambda _: "red", QUESTION, "held out first"),
        ("colors", WRONG.__getitem__, QUESTION, "held out first"),
        ("opposite", WRONG.__getitem__, QUESTION, "colors fell"),
    ):
        job = teach(site, task, answer, shade=len(task + word), question=question)
        assert word in reasons(job), (task, word)
        assert stable(site) == good
    assert reasons(teach(site, "colors", lambda name: name, shade=9)) == ""
    assert stable(site) != good


@pytest.mark.parametrize("answers", [("wise",), ("ein", "zwei"), ("да", "нет"), ("x " * 40, "y " * 40)])
def test_odd_answers_are_learned_or_refused_in_words(site: Site, answers: Sequence[str]):
    number = iter(range(60))
    job = teach(site, "odd", lambda _: answers[next(number) % len(answers)], shade=3)
    assert job.status in {JobStatus.SUCCEEDED, JobStatus.FAILED}
    assert (job.gate or {}).get("passed") or reasons(job)


def test_many_small_steps_cannot_carry_a_task_away(site: Site):
    """A task is compared with its best on what it was measured on first, not with its last step."""
    teach(site, "colors", lambda name: name, shade=0)
    first = site.versions.manifest(stable(site)).anchors["colors"]
    for shade in (11, 12):
        teach(site, "colors", lambda name: name, shade=shade)
        anchor = site.versions.manifest(stable(site)).anchors["colors"]
        assert anchor.dataset_id == first.dataset_id
        assert anchor.best >= first.best
    assert site.versions.manifest(stable(site)).splits["colors"].dataset_id != first.dataset_id


def test_a_small_batch_of_another_kind_needs_evidence_although_its_task_is_known(site: Site):
    assert reasons(teach(site, "colors", lambda name: name, shade=0)) == ""
    good = stable(site)
    other = "Please name the paint that covers this old canvas."
    few = teach(site, "colors", shuffled(3), shade=5, question=other, count=10)
    assert few.decision == "retrain"
    assert "too few to tell" in reasons(few) or "seem to belong" in reasons(few) or "fell" in reasons(few)
    alike = teach(site, "colors", lambda _: "red", shade=6, question=other, count=30)
    assert "is the same" in reasons(alike) or "fell" in reasons(alike)
    assert stable(site) == good
