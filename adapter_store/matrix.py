"""Measure what a sequence of learned tasks keeps and loses.

``R[i][j]`` is the score on task j's held-out split after stage i; the row before
the first stage is the untouched base. A stage is one finished training job: it
either learns a new task or trains a known one again (retrain), so there may be
more stages than tasks. A score may be missing (None): a task that was not known
yet at that stage, or a base that was never scored on it. A missing score takes
no part in a mean; it is never read as zero.

Write ``first(j)`` for the stage that learned task j first, ``last(j)`` for the
latest stage that trained it, and ``T`` for the last stage. Scores are only comparable
along one held-out set: where a task's set was replaced, ``since`` names the first stage
with its present one, and what came before takes no part in a difference.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from adapter_store.errors import InputError
from adapter_store.names import check_task_name


def _missing(value: Any) -> Any:
    """Return None for NaN, which JSON cannot carry."""
    return None if isinstance(value, float) and math.isnan(value) else value


Since = Mapping[str, int]
Score = Annotated[float | None, BeforeValidator(_missing)]


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None


class AccuracyMatrix(BaseModel):
    """Hold the scores of every known task after every stage.

    Attributes:
        tasks: Task names, the columns, in the order in which they became known.
        base: Score of the untouched base per task.
        rows: One row per stage, one score (0 to 1) per task.
        trained: The task that each stage trained; one entry per row.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    tasks: tuple[str, ...] = ()
    base: tuple[Score, ...] = ()
    rows: tuple[tuple[Score, ...], ...] = ()
    trained: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        width = len(self.tasks)
        try:
            for task in self.tasks:
                check_task_name(task)
        except InputError as error:
            raise ValueError(error.message) from None
        if len(set(self.tasks)) != width:
            raise ValueError("a task is listed twice")
        if len(self.base) != width or any(len(row) != width for row in self.rows):
            raise ValueError(f"every row needs one score for each of the {width} tasks")
        if len(self.trained) != len(self.rows):
            raise ValueError(
                f"{len(self.rows)} rows need as many names in 'trained', got {len(self.trained)}"
            )
        if unknown := set(self.trained) - set(self.tasks):
            raise ValueError(f"trained tasks without a column: {', '.join(sorted(unknown))}")
        for row in (self.base, *self.rows):
            if any(score is not None and not 0.0 <= score <= 1.0 for score in row):
                raise ValueError("a score lies outside 0 to 1")
        return self

    @classmethod
    def empty(cls) -> Self:
        """Return the matrix of a base that has learned nothing."""
        return cls()

    def with_stage(
        self, trained: str, scores: Mapping[str, float | None], base: Mapping[str, float | None] | None = None
    ) -> AccuracyMatrix:
        """Return a new matrix with one more row.

        Args:
            trained: The task that this stage learned or trained again.
            scores: Score per task after this stage; tasks left out are missing (None).
            base: Score of the untouched base for tasks that have none yet.

        Raises:
            ValueError: ``scores`` lacks the trained task, or a score lies outside 0 to 1.
        """
        if scores.get(trained) is None:
            raise ValueError(f"the stage that trained {trained!r} has no score for it")
        new = tuple(task for task in dict.fromkeys((*scores, trained)) if task not in self.tasks)
        tasks = self.tasks + new
        given = base or {}
        old_base = self.base + (None,) * len(new)
        base_row = tuple(
            given.get(task) if old is None else old for task, old in zip(tasks, old_base, strict=True)
        )
        rows = tuple(row + (None,) * len(new) for row in self.rows)
        row = tuple(scores.get(task) for task in tasks)
        return AccuracyMatrix(tasks=tasks, base=base_row, rows=(*rows, row), trained=(*self.trained, trained))

    def score(self, stage: int, task: str) -> float | None:
        """Return R[stage][task]; stage -1 is the untouched base."""
        column = self._column(task)
        return self.base[column] if stage == -1 else self.rows[stage][column]

    def seen(self, stage: int) -> tuple[str, ...]:
        """Return the tasks trained up to and including ``stage``, in the order of first training."""
        return tuple(dict.fromkeys(self.trained[: stage + 1]))

    def average_accuracy(self) -> float | None:
        """Return the mean over seen tasks j of R[T][j]; None before the first stage."""
        return self._seen_mean(len(self.rows) - 1) if self.rows else None

    def mean_average_accuracy(self) -> float | None:
        """Return the mean over stages i of the mean over tasks j seen by then of R[i][j]."""
        return _mean(self._seen_mean(stage) for stage in range(len(self.rows)))

    def forgetting(self, since: Since | None = None) -> float:
        """Return the mean over tasks j learned before T of ( max over first(j)<=i<T of R[i][j] - R[T][j] ).

        Negative when tasks got better. 0.0 while no task could have been forgotten.
        """
        return _mean(self.forgetting_of(task, since) for task in self._earlier()) or 0.0

    def forgetting_of(self, task: str, since: Since | None = None) -> float | None:
        """Return max over first(j)<=i<T of R[i][j] - R[T][j] for one task.

        None if the task was first learned at the last stage, or was not scored both
        before and at the last stage on one held-out set.

        Args:
            task: The task j.
            since: First stage that was measured on a task's present held-out set; 0 if not named.

        Raises:
            KeyError: The matrix has no such task.
        """
        column = self._column(task)
        first = self.trained.index(task) if task in self.trained else len(self.rows)
        before = [row[column] for row in self.rows[max(first, (since or {}).get(task, 0)) : -1]]
        scores = [score for score in before if score is not None]
        now = self.rows[-1][column] if self.rows else None
        return max(scores) - now if scores and now is not None else None

    def backward_transfer(self, since: Since | None = None) -> float:
        """Return the mean over tasks j with last(j)<T of ( R[T][j] - R[last(j)][j] ).

        Without retraining this is 1/(T-1) * sum over j<T of ( R[T][j] - R[j][j] ).
        What a task gains by being trained again is learning, not transfer, so the
        score after its latest training is the reference, or the first one on its
        present held-out set if that is later. 0.0 with fewer than two tasks.
        """
        differences: list[float] = []
        for task in self._earlier():
            last = max(i for i, name in enumerate(self.trained) if name == task)
            reference = max(last, (since or {}).get(task, 0))
            if reference >= len(self.rows) - 1:
                continue
            now, then = self.score(len(self.rows) - 1, task), self.score(reference, task)
            if now is not None and then is not None:
                differences.append(now - then)
        return _mean(differences) or 0.0

    def new_task_accuracy(self) -> float | None:
        """Return the mean over tasks j of R[first(j)][j]; None before the first stage."""
        return _mean(self.score(self.trained.index(task), task) for task in dict.fromkeys(self.trained))

    def summary(self, since: Since | None = None) -> dict[str, float | None]:
        """Return every measure by name; ``since`` as in ``forgetting_of``."""
        return {
            "average_accuracy": self.average_accuracy(),
            "mean_average_accuracy": self.mean_average_accuracy(),
            "forgetting": self.forgetting(since),
            "backward_transfer": self.backward_transfer(since),
            "new_task_accuracy": self.new_task_accuracy(),
        }

    def to_csv(self) -> str:
        """Return one line per stage: number, trained task, then a score per task (empty where missing)."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["stage", "trained", *self.tasks])
        writer.writerow(["base", "", *_cells(self.base)])
        for stage, (trained, row) in enumerate(zip(self.trained, self.rows, strict=True), start=1):
            writer.writerow([stage, trained, *_cells(row)])
        return text.getvalue()

    def _column(self, task: str) -> int:
        if task not in self.tasks:
            raise KeyError(f"the matrix has no task {task!r}")
        return self.tasks.index(task)

    def _seen_mean(self, stage: int) -> float | None:
        return _mean(self.score(stage, task) for task in self.seen(stage))

    def _earlier(self) -> tuple[str, ...]:
        return self.seen(len(self.rows) - 2) if len(self.rows) > 1 else ()


def _cells(row: Sequence[float | None]) -> list[str]:
    return ["" if score is None else f"{score:.6g}" for score in row]
