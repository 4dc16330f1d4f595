"""The gateway's series: bounded, never empty in between, and gone with what they showed."""

from __future__ import annotations

import math
import threading

from adapter_store.matrix import AccuracyMatrix
from server.metrics import MATRIX_CELLS, MATRIX_STAGES, Metrics


def cells(metrics: Metrics) -> dict[tuple[str, str, str], float]:
    """Return the shown accuracy matrix by stage, trained task and measured task."""
    (family,) = [
        found for found in metrics.registry.collect() if found.name == "strata_accuracy_matrix_ratio"
    ]
    return {
        (sample.labels["stage"], sample.labels["trained"], sample.labels["task"]): sample.value
        for sample in family.samples
    }


def long_matrix(stages: int, tasks: int = 1) -> AccuracyMatrix:
    names = tuple(f"t{number}" for number in range(tasks))
    return AccuracyMatrix(
        tasks=names,
        base=(0.5,) * tasks,
        rows=((0.75,) * tasks,) * stages,
        trained=tuple(names[stage % tasks] for stage in range(stages)),
    )


def test_the_matrix_is_shown_with_the_base_and_without_missing_scores():
    metrics = Metrics()
    matrix = AccuracyMatrix(
        tasks=("a", "b"), base=(0.1, None), rows=((0.9, None), (0.8, 0.7)), trained=("a", "b")
    )
    metrics.show_matrix(matrix)
    assert cells(metrics) == {
        ("0000", "base", "a"): 0.1,
        ("0001", "a", "a"): 0.9,
        ("0002", "b", "a"): 0.8,
        ("0002", "b", "b"): 0.7,
    }
    metrics.show_matrix(AccuracyMatrix.empty())
    assert cells(metrics) == {}


def test_a_long_lineage_shows_its_base_and_its_latest_stages():
    metrics = Metrics()
    metrics.show_matrix(long_matrix(1000))
    stages = sorted({stage for stage, _, _ in cells(metrics)})
    assert stages == ["0000", *(f"{stage:04d}" for stage in range(1001 - MATRIX_STAGES, 1001))]


def test_many_tasks_show_fewer_stages_and_never_none():
    metrics = Metrics()
    metrics.show_matrix(long_matrix(1000, tasks=500))
    assert len(cells(metrics)) == MATRIX_CELLS
    metrics.show_matrix(long_matrix(1000, tasks=MATRIX_CELLS))
    assert {stage for stage, _, _ in cells(metrics)} == {"0000", "1000"}


def test_an_alias_shows_its_version_its_number_and_when_it_moved():
    metrics = Metrics()
    metrics.show_aliases({"stable": "base"})
    metrics.show_aliases({"stable": "v12", "canary": "v13"}, {"stable": 5.0, "canary": 7.0})
    metrics.show_aliases({"stable": "v12"}, {"stable": 5.0})
    shown = metrics.render().decode()
    assert 'strata_adapter_alias_version{alias="stable"} 12.0' in shown
    assert 'strata_adapter_alias_moved_timestamp_seconds{alias="stable",version="v12"} 5.0' in shown
    aliases = [line for line in shown.splitlines() if line.startswith("strata_adapter_alias")]
    assert len(aliases) == 3
    assert all('alias="stable"' in line and "base" not in line for line in aliases)


def test_a_scrape_never_finds_the_aliases_gone():
    metrics = Metrics()
    metrics.show_aliases({"stable": "v1"})
    done = threading.Event()

    def move() -> None:
        while not done.is_set():
            metrics.show_aliases({"stable": "v1"})
            metrics.show_aliases({"stable": "v2"})

    mover = threading.Thread(target=move)
    mover.start()
    try:
        scrapes = [metrics.render().decode() for _ in range(300)]
    finally:
        done.set()
        mover.join()
    assert all('strata_adapter_alias_info{alias="stable"' in shown for shown in scrapes)


def test_what_was_not_measured_yet_is_no_number():
    value = Metrics().registry.get_sample_value
    for name in ("zero_shot_retention_ratio", "average_accuracy_ratio", "adapter_served_version"):
        assert math.isnan(value(f"strata_{name}") or 0), name


def test_a_task_that_nobody_asks_shows_as_zero():
    metrics = Metrics()
    nothing = {"forgetting": {}, "leak": {}, "average": None, "backward_transfer": None, "retention": None}
    metrics.show_quality(accuracy={"digits": 0.9}, **nothing)
    assert metrics.registry.get_sample_value("strata_routed_requests_total", {"task": "digits"}) == 0
