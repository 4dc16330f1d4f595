"""The test part that an archive names goes through store and worker: measured on, never trained on."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import trainer_worker.pipeline as pipeline
from adapter_store.jobs import Job, JobStatus
from tests.integration.working import COLORS, FAST, Site
from trainer_worker.heldout import HeldOut, picture_key


def archive(path: Path) -> None:
    """Write a zip with train.jsonl (15 pictures) and test.jsonl (6 others)."""
    parts: dict[str, list[str]] = {"train": [], "test": []}
    with zipfile.ZipFile(path, "w") as target:
        for n in range(21):
            answer = list(COLORS)[n % 3]
            red, green, blue = COLORS[answer]
            out = io.BytesIO()
            Image.new("RGB", (28, 28), (red, green, (blue + 2 * n) % 256)).save(out, format="PNG")
            target.writestr(f"{n}.png", out.getvalue())
            row = {"image": f"{n}.png", "question": "Which color?", "answer": answer}
            parts["test" if n >= 15 else "train"].append(json.dumps(row))
        for part, rows in parts.items():
            target.writestr(f"{part}.jsonl", "\n".join(rows))


def test_the_given_pictures_are_held_out_and_no_others(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(tmp_path / "colors.zip")
    ref = site.datasets.put(tmp_path / "colors.zip", filename="colors.zip")
    data = site.datasets.open(ref.id)
    tests = {picture_key(example) for example in data.examples if example.split == "test"}
    trained: set[str] = set()
    original = pipeline.learn

    def spy(replicas, state, task, lesson, settings, **kwargs):
        used = (*lesson.train, *lesson.validation)
        trained.update(picture_key(lesson.encoded.examples[i]) for i in used)
        return original(replicas, state, task, lesson, settings, **kwargs)

    monkeypatch.setattr(pipeline, "learn", spy)
    settings = {**FAST, "epochs": 1}
    job = site.finish(
        site.queue.submit(Job(lineage="strata", task="colors", dataset=ref, hyperparameters=settings))
    )
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert len(tests) == 6
    assert trained == {picture_key(example) for example in data.examples} - tests
    assert HeldOut(site.home / "heldout" / "strata").record("colors").held_out == tests
