"""The manifest of a version: where it came from, what it measured, what its files must hash to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

from adapter_store.matrix import AccuracyMatrix

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Gate(BaseModel):
    """Record whether the forgetting gate let the version become stable, and why not."""

    model_config = ConfigDict(frozen=True)

    passed: bool
    reasons: tuple[str, ...] = ()


class Probe(BaseModel):
    """Record one question and the answer that a loaded version must reproduce.

    Attributes:
        image: Name of a PNG in the version's folder, or None.
        answer_token_ids: The greedy answer, end token included.
        logprobs: Natural log probability of each answer token.
    """

    model_config = ConfigDict(frozen=True)

    question: str
    image: str | None = None
    answer_token_ids: tuple[int, ...]
    logprobs: tuple[FiniteFloat, ...]


class MeasuredOn(BaseModel):
    """Record what a task was measured on; scores compare only along one data set.

    Attributes:
        dataset_id: The held-out data set.
        since: The first stage (row of the accuracy matrix) that was measured on it.
    """

    model_config = ConfigDict(frozen=True)

    dataset_id: str
    since: int = Field(ge=0)


def comparable_since(splits: Mapping[str, MeasuredOn]) -> dict[str, int]:
    """Return each task's first stage whose scores compare with the present ones."""
    return {task: split.since for task, split in splits.items()}


class Anchor(BaseModel):
    """Record what a task must not lose however often it is trained again.

    Attributes:
        dataset_id: The first data set that was held out for it.
        best: Its best accuracy on that set so far.
        last: The accuracy of this version.
    """

    model_config = ConfigDict(frozen=True)

    dataset_id: str
    best: FiniteFloat
    last: FiniteFloat


class ManifestDraft(BaseModel):
    """Describe a version before it has a number; the trainer fills this in.

    Attributes:
        settings: The method's settings that training used.
        accuracy: The whole accuracy matrix after this stage.
        splits: Per measured task, the held-out data set behind its score.
        anchors: Per measured task, the held-out set that all its trainings are compared on.
        compared_since: First stage that the gate compares with; an operator who promotes against it moves it.
        routing_leak: Per task, the share of coefficient mass outside its own rows.
        seconds: Wall-clock seconds per phase of the job.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parent: str = "base"
    base_id: str
    base_digest: str
    job_id: str
    dataset_id: str
    task: str
    decision: Literal["retrain", "expand"]
    tasks: tuple[str, ...]
    settings: dict[str, Any] = Field(default_factory=dict)
    accuracy: AccuracyMatrix = Field(default_factory=AccuracyMatrix.empty)
    splits: dict[str, MeasuredOn] = Field(default_factory=dict)
    anchors: dict[str, Anchor] = Field(default_factory=dict)
    compared_since: int = Field(default=0, ge=0)
    routing_leak: dict[str, FiniteFloat] = Field(default_factory=dict)
    zero_shot_retention: FiniteFloat | None = None
    gate: Gate | None = None
    probe: Probe | None = None
    created_at: float = Field(default_factory=time.time)
    seconds: dict[str, FiniteFloat] = Field(default_factory=dict)


class Manifest(ManifestDraft):
    """Describe one published version; its existence means that the version is complete.

    Attributes:
        fence: Fencing token of the worker that published.
        files: sha256 of every file of the version besides the manifest.
    """

    version: str
    lineage: str
    fence: int
    files: dict[str, Sha256]
