"""Publish a measured state as an immutable version and, if the gate passed, point ``stable`` at it.

Every step can be repeated: a worker that takes the job up again finds what is done already and does the rest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapter_store.errors import AliasConflict
from adapter_store.matrix import AccuracyMatrix
from adapter_store.names import BASE_VERSION
from adapter_store.state import AdapterState
from adapter_store.versions import (
    STABLE,
    AliasRecord,
    AliasTable,
    Manifest,
    ManifestDraft,
    Probe,
    VersionStore,
)

ACTOR = "trainer"
PROBE_IMAGE = "probe.png"


@dataclass(frozen=True, slots=True)
class RecordedProbe:
    """A held-out question with the greedy answer of the state; ``picture`` is PNG bytes or None."""

    question: str
    picture: bytes | None
    answer_token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Promotion:
    """What happened to ``stable``: ``decision`` is promoted, held_back, conflict or superseded."""

    decision: str
    message: str


def publish(
    store: VersionStore, state: AdapterState, draft: ManifestDraft, probe: RecordedProbe | None, *, fence: int
) -> Manifest:
    """Write the state and its probe as a new version; return the manifest (the old one if the job has one).

    Raises:
        FencedOut: a newer worker owns the lineage.
    """
    with tempfile.TemporaryDirectory(prefix="strata-version-") as name:
        folder = Path(name)
        state.save(folder)
        if probe is not None:
            if probe.picture is not None:
                (folder / PROBE_IMAGE).write_bytes(probe.picture)
            draft = draft.model_copy(update={"probe": _probe_record(probe)})
        return store.publish(folder, draft, fence=fence)


def promote(aliases: AliasTable, manifest: Manifest) -> Promotion:
    """Move ``stable`` to a version that passed the gate, and ``previous`` to its parent, by compare-and-set.

    If somebody moved ``stable`` away from the parent in the meantime, the version stays a candidate: it was
    measured against another parent.
    """
    if manifest.gate is None or not manifest.gate.passed:
        reasons = "; ".join(manifest.gate.reasons) if manifest.gate else "it was not gated"
        return Promotion("held_back", f"{manifest.version} is kept as a candidate: {reasons}")
    moved = _moved_to(aliases, manifest.version)
    if moved is None:
        record = aliases.get(STABLE)
        current = record.version if record else BASE_VERSION
        conflict = (
            f"stable is {current} now, not {manifest.parent}; {manifest.version} is kept as a candidate"
        )
        if current != manifest.parent:
            return Promotion("conflict", conflict)
        try:
            reason = f"{manifest.decision} {manifest.task}: the gate passed"
            revision = record.revision if record else 0
            moved = aliases.move(
                STABLE, manifest.version, expected_revision=revision, reason=reason, actor=ACTOR
            )
        except AliasConflict:
            return Promotion("conflict", conflict)
    current = aliases.get(STABLE)
    if current is not None and current.revision != moved.revision:
        # An earlier attempt moved it, somebody moved it on: their stable and previous stand.
        return Promotion(
            "superseded", f"{manifest.version} was stable; {current.actor} moved stable to {current.version}"
        )
    aliases.remember_previous()
    return Promotion("promoted", f"stable is {manifest.version}")


def stage_matrix(
    before: AccuracyMatrix, trained: str, scores: Mapping[str, float | None], base: Mapping[str, float | None]
) -> AccuracyMatrix:
    """Add a stage to the matrix; a task without held-out pictures gets a missing score."""
    if scores.get(trained) is not None:
        return before.with_stage(trained, scores, base)
    tasks = (*before.tasks, *(task for task in scores if task not in before.tasks))
    blank = (None,) * (len(tasks) - len(before.tasks))
    return AccuracyMatrix(
        tasks=tasks,
        base=before.base + blank,
        rows=(*(row + blank for row in before.rows), tuple(scores.get(task) for task in tasks)),
        trained=(*before.trained, trained),
    )


def _moved_to(aliases: AliasTable, version: str) -> AliasRecord | None:
    """Return the trainer's own move of ``stable`` to a version, if it was made already."""
    moves = aliases.history(STABLE)
    return next((move for move in moves if move.version == version and move.actor == ACTOR), None)


def _probe_record(probe: RecordedProbe) -> Probe:
    return Probe(
        question=probe.question,
        image=PROBE_IMAGE if probe.picture is not None else None,
        answer_token_ids=probe.answer_token_ids,
        logprobs=probe.logprobs,
    )
