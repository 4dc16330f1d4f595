"""Settings: one list of names, every fault at once, no secret shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapter_store.jobs.connection import address
from adapter_store.settings import (
    GATEWAY_NAMES,
    PREFIX,
    SHARED_NAMES,
    WORKER_NAMES,
    SettingsError,
    SharedSettings,
    known_names,
    read_settings,
    unknown_variables,
)
from server.engine.requests import MAX_LOGPROBS, MAX_STOP_STRINGS
from server.settings import FLAG_ALIASES, GatewaySettings
from trainer_worker.settings import WorkerSettings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in known_names():
        monkeypatch.delenv(f"{PREFIX}{name.upper()}", raising=False)


def read(*argv: str) -> GatewaySettings:
    return read_settings(GatewaySettings, argv, program="test", aliases=FLAG_ALIASES)


def test_the_list_of_names_is_the_truth():
    assert set(SharedSettings.model_fields) == set(SHARED_NAMES)
    assert set(GatewaySettings.model_fields) - set(SHARED_NAMES) <= known_names()
    assert set(WorkerSettings.model_fields) - set(SHARED_NAMES) <= known_names()
    assert set(GATEWAY_NAMES) <= set(GatewaySettings.model_fields)
    assert set(WORKER_NAMES) <= set(WorkerSettings.model_fields) | set(GatewaySettings.model_fields)


def test_environment_and_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("STRATA_PORT", "8001")
    monkeypatch.setenv("STRATA_MAX_BATCH", "4")
    monkeypatch.setenv("STRATA_HOME", str(tmp_path))
    monkeypatch.setenv("STRATA_REDIS_URL", "")
    settings = read("--max-num-seqs", "8", "--model=/models/llava", "--served-model-name", "eyes")
    assert (settings.port, settings.max_batch, settings.base) == (8001, 8, "/models/llava")
    assert (settings.model_name, settings.home) == ("eyes", tmp_path)
    assert settings.versions_url == str(tmp_path / "versions")


def test_every_fault_is_reported_at_once_with_what_was_meant(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STRATA_PROT", "1")
    monkeypatch.setenv("STRATA_PORT", "high")
    monkeypatch.setenv("STRATA_MODEL_NAME", "Bad Name")
    with pytest.raises(SettingsError) as caught:
        read("--bancks", "3")
    message = caught.value.message
    assert "STRATA_PROT is not a setting; did you mean STRATA_PORT?" in message
    assert "--bancks is not a flag; did you mean --banks?" in message
    assert "STRATA_PORT (--port)" in message
    assert "STRATA_MODEL_NAME (--model-name)" in message


@pytest.mark.parametrize(("name", "most"), [("max_stop", MAX_STOP_STRINGS), ("max_logprobs", MAX_LOGPROBS)])
def test_what_the_engine_refuses_cannot_be_allowed(name: str, most: int):
    flag = f"--{name.replace('_', '-')}"
    assert getattr(read(flag, str(most)), name) == most
    with pytest.raises(SettingsError, match=f"{flag}.*less than or equal to {most}"):
        read(flag, str(most + 1))


def test_variables_of_the_other_program_are_let_pass():
    assert unknown_variables({"STRATA_METRICS_PORT": "9", "STRATA_URL": "x", "PATH": "y"}) == []
    assert len(unknown_variables({"STRATA_NONSENSE": "1", "STRATA_": "2"})) == 2


def test_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STRATA_API_KEYS", "sk-very-secret")
    settings = read()
    assert "sk-very-secret" not in repr(settings)
    assert "sk-very-secret" not in settings.model_dump_json()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret/9@redis:6379/0",
        "redis://:123/s3cret@redis",
        "redis://:123?s3cret@redis",
        "redis://s3cret:123#x@redis",
        "redis://:s3[cret@redis",
        "unix://:s3cret/x@/run/redis.sock",
        "s3cret://redis",
    ],
)
def test_a_redis_url_that_cannot_be_read_ends_the_start_and_shows_no_password(
    monkeypatch: pytest.MonkeyPatch, url: str
):
    monkeypatch.setenv("STRATA_REDIS_URL", url)
    with pytest.raises(SettingsError) as caught:
        read()
    assert "STRATA_REDIS_URL (--redis-url): the Redis URL" in caught.value.message
    assert not any(part in caught.value.message for part in ("s3", "cret", "123"))


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret%2F9@redis:6379/0",
        "rediss://user:s3cret@[::1]/2?protocol=3",
        "unix:///run/a@b.sock",
        "unix://:s3cret@/run/redis.sock?db=1",
        "redis://",
    ],
)
def test_a_redis_url_that_can_be_read_is_kept(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("STRATA_REDIS_URL", url)
    assert read().redis_url == url
    assert "s3cret" not in address(url)


@pytest.mark.parametrize(
    ("flags", "seconds"),
    [
        ((), 0.1),
        (("--store-url", "/srv/versions"), 0.1),
        (("--store-url", "file:///srv/versions"), 0.1),
        (("--store-url", "s3://bucket/strata"), 0.5),
        (("--store-url", "s3://bucket/strata", "--alias-poll-seconds", "2"), 2.0),
    ],
)
def test_aliases_are_looked_for_often_where_a_look_costs_nothing(flags: tuple[str, ...], seconds: float):
    assert read(*flags).look_seconds == seconds


@pytest.mark.parametrize(
    "name", ["strata.example:8443", "https://strata.example", "*.example.org", "a b", "[::1]"]
)
def test_a_host_that_could_never_be_met_is_refused(name: str):
    with pytest.raises(SettingsError, match="write names alone") as caught:
        read("--allowed-hosts", f"good.example, {name}")
    assert name in str(caught.value)
    assert "good.example" not in str(caught.value).split("write names")[0]


def test_hosts_are_names_in_any_case():
    assert read("--allowed-hosts", " Strata.Example, gpu1,").allowed_names == {"strata.example", "gpu1"}
    assert read().allowed_names == frozenset()
