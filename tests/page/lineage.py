"""A lineage with a history worth looking at: two tasks, some forgetting, and a version held back."""

from __future__ import annotations

from adapter_store.matrix import AccuracyMatrix
from tests.contract.publishing import Publisher

FIRST = AccuracyMatrix.empty().with_stage("digits", {"digits": 0.94}, {"digits": 0.11})
SECOND = FIRST.with_stage("animals", {"digits": 0.93, "animals": 0.91}, {"animals": 0.2})
THIRD = SECOND.with_stage("digits", {"digits": 0.81, "animals": 0.9})


def lineage(publisher: Publisher) -> list[str]:
    """Publish three versions and return their names."""
    made: list[str] = []
    for seed, (task, matrix, reasons) in enumerate(
        [("digits", FIRST, ()), ("animals", SECOND, ()), ("digits", THIRD, ("forgot digits by 0.13",))]
    ):
        manifest = publisher.publish(
            publisher.state(40 + seed, task),
            parent=made[-1] if made else "base",
            accuracy=matrix,
            reasons=reasons,
            decision="retrain" if len(made) == 2 else "expand",
        )
        made.append(manifest.version)
    return made
