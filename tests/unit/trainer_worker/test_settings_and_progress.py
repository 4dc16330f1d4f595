"""Hyperparameters of a job, settings of the worker, and what progress tells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from adapter_store.datasets.luck import Measuring
from adapter_store.errors import InputError
from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.settings import WORKER_NAMES, SettingsError, SharedSettings, read_settings
from trainer_worker.__main__ import main
from trainer_worker.metrics import WorkerMetrics
from trainer_worker.progress import Progress
from trainer_worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[3]


def test_a_job_overrides_defaults_with_the_names_of_the_openai_api():
    merged = Hyperparameters.of_job(
        Hyperparameters(batch_size=16), {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    )
    assert (merged.epochs, merged.batch_size) == (2, 16)
    assert merged.peak_rate == merged.learning_rate / 2


def test_all_bad_hyperparameters_are_named_at_once():
    with pytest.raises(InputError) as caught:
        Hyperparameters.of_job(Hyperparameters(), {"n_epochs": -1, "color_of_hair": 3})
    assert "epochs" in caught.value.message
    assert "color_of_hair" in caught.value.message


def test_the_modes_of_the_ema_are_listed_once():
    files = [path for top in ("adapter_store", "trainer_worker") for path in (ROOT / top).rglob("*.py")]
    listed = [path.name for path in files if 'Literal["normalised"' in path.read_text(encoding="utf-8")]
    assert listed == ["hyperparameters.py"]


def test_every_worker_setting_is_known_to_all_programs():
    own = set(WorkerSettings.model_fields) - set(SharedSettings.model_fields)
    assert own == set(WORKER_NAMES)


def test_the_defaults_of_measuring_are_those_of_checks():
    settings = SharedSettings()
    assert Measuring(settings.max_chance, settings.holdout_ratio) == Measuring()


def test_flags_are_read_and_faults_end_the_program_with_status_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    settings = read_settings(WorkerSettings, ["--rank", "4", "--span=all"], program="worker", environ={})
    assert (settings.rank, settings.span) == (4, "all")
    with pytest.raises(SettingsError, match="did you mean --ema-mode"):
        read_settings(WorkerSettings, ["--ema-mod", "fixed"], program="worker", environ={})
    monkeypatch.setenv("STRATA_RANK", "many")
    assert main([]) == 2
    assert "STRATA_RANK" in capsys.readouterr().err


class Ledger:
    """Keep what a job would be told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.fields: dict[str, Any] = {}

    def event(self, message: str, *, level: str = "info", type: str = "message", data: Any = None) -> None:
        self.events.append((type, {"message": message, **(data or {})}))

    def update(self, **fields: Any) -> None:
        self.fields |= fields


def test_metrics_go_out_once_a_second_and_always_at_the_end():
    now = [0.0]
    ledger = Ledger()
    progress = Progress(ledger, WorkerMetrics(), clock=lambda: now[0])
    with progress.phase("train"):
        for step in range(1, 25):
            now[0] += 0.125
            progress.training(step, 24, {"loss": 1 / step}, eta_seconds=3 - now[0])
    sent = [data for kind, data in ledger.events if kind == "metrics"]
    assert [data["step"] for data in sent] == [1, 9, 17, 24]
    assert sent[0]["eta_seconds"] == pytest.approx(2.875, abs=0.06)
    assert ledger.fields["phase"] == "train"
    assert ledger.fields["seconds"] == {"train": 3.0}
    assert ledger.fields["estimated_finish"] > 0


@pytest.mark.parametrize(
    "name", ["learning_rate_multiplier", "learning_rate", "down_rate_ratio", "beta2", "target_accuracy"]
)
def test_a_number_that_rounding_swallows_is_refused(name: str):
    for small in (1e-320, 9e-7):
        with pytest.raises(InputError, match=rf"{name}: Input should be greater than or equal to 0\.000001"):
            Hyperparameters.of_job(Hyperparameters(), {name: small})
    assert getattr(Hyperparameters.of_job(Hyperparameters(), {name: 1e-6}), name) == 1e-6


@pytest.mark.parametrize("name", ["n_epochs", "max_seconds", "clip_norm"])
def test_what_nought_switches_off_is_not_nearly_nought(name: str):
    with pytest.raises(InputError, match=f"{name}: must be 0 or at least 0.000001"):
        Hyperparameters.of_job(Hyperparameters(), {name: 1e-320})
    for value in (0, 0.5):
        Hyperparameters.of_job(Hyperparameters(), {name: value})


def test_every_hyperparameter_is_explained():
    explained = set(re.findall(r"^ {4,}(\w+): ", Hyperparameters.__doc__ or "", re.MULTILINE))
    assert set(Hyperparameters.model_fields) <= explained


def test_preparation_is_told_once_a_second():
    now = [10.0]
    ledger = Ledger()
    progress = Progress(ledger, WorkerMetrics(), clock=lambda: now[0])
    for done in range(0, 96, 16):
        progress.preparing(done, 96)
        now[0] += 0.5
    assert [data["prepared"] for _, data in ledger.events] == [0, 32, 64]
    assert ledger.events[0][1]["to_prepare"] == 96
