"""Check what the command line refuses, what it warns of, and that its tables are whole."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from adapter_store.settings import GATEWAY_NAMES, SHARED_NAMES, WORKER_NAMES
from server.canary.protocol import EXAMPLE as CANARY
from server.canary.rule import Rule
from server.cli.main import main
from server.launch.ports import free_port
from tests.scripted_http import reply
from tests.unit.server.conftest import Answering

ROOT = Path(__file__).resolve().parents[3]
JOB_ID = "job-0193f2a4c0de1f2e3d4c5b6a7980"


def strata(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STRATA_")}
    return subprocess.run(
        [sys.executable, "-m", "server.cli.main", *map(str, words)],
        capture_output=True, text=True, cwd=ROOT, env={**kept, **variables}, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("verb", ["up", "serve", "work"])
@pytest.mark.parametrize("place", ["file", "proc"])
def test_a_home_that_cannot_be_made_is_a_sentence(tmp_path: Path, verb: str, place: str):
    home = {"file": tmp_path / "file", "proc": Path("/proc/nope")}[place]
    (tmp_path / "file").write_text("x")
    done = strata(verb, "--home", home)
    assert done.returncode == 2
    assert f"the home folder {home} cannot be made" in done.stderr
    assert "Error" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_a_sentence(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = strata("serve", "--home", tmp_path, "--port", port)
    assert done.returncode == 2
    words = "is taken by another program; stop it or choose another port with --port"
    assert done.stderr == f"error: port {port} on 127.0.0.1 {words}\n"


@pytest.mark.parametrize("verb", ["up", "serve"])
def test_bad_keys_are_refused_before_anything_starts(tmp_path: Path, verb: str):
    done = strata(verb, "--home", tmp_path / "home", "--port", free_port(), STRATA_API_KEYS="hushhush:rule")
    assert done.returncode == 2
    assert "STRATA_API_KEYS" in done.stderr
    assert "unknown scope" in done.stderr
    assert "hush" not in done.stdout + done.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("verb", "names"),
    [("serve", (*SHARED_NAMES, *GATEWAY_NAMES)), ("work", (*SHARED_NAMES, *WORKER_NAMES))],
)
def test_the_help_lists_every_setting(verb: str, names: tuple[str, ...]):
    done = strata(verb, "--help")
    assert done.returncode == 0
    assert [name for name in names if f"--{name.replace('_', '-')} " not in done.stdout] == []
    assert "--json" in done.stdout


def test_the_help_of_up_lists_the_settings_of_both_programs():
    text = strata("up", "--help").stdout
    assert "--max-waiting VALUE" in text
    assert "--max-forgetting VALUE" in text


@pytest.mark.parametrize("example", ["ask.py", "teach.py"])
@pytest.mark.parametrize(
    ("status", "said"), [(400, "because of the moon"), (502, "answered with status 502")]
)
def test_an_example_shows_the_servers_own_words(
    answering: Answering, tmp_path: Path, example: str, status: int, said: str
):
    error = {"error": {"message": "because of the moon"}} if status == 400 else "<html>"
    url = answering(
        {"/v1/chat/completions": reply(status, error), "/v1/tasks/birds/batches": reply(status, error)}
    )
    (tmp_path / "robin").mkdir()
    picture = tmp_path / "robin" / "1.png"
    picture.write_bytes(b"x")
    words = {"ask.py": [picture, "What?"], "teach.py": [tmp_path, "birds", "What?"]}[example]
    for address, expected in ((url, said), ("http://127.0.0.1:9", "refused")):
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / example, *words],
            capture_output=True, text=True, env={**os.environ, "STRATA_URL": address}, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert expected in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", ["nan", "inf", "warm"])
def test_a_temperature_that_is_no_number_is_a_wrong_command(number: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["chat", "--temperature", number, "hi"])
    assert ended.value.code == 2
    assert "--temperature" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["geheim-\u00fc", "secret\nline", " secret", "secret ", "sec\x1bret"])
def test_a_key_that_no_header_carries_is_refused_and_never_shown(
    key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("STRATA_API_KEY", key)
    assert main(["versions", "--url", "http://127.0.0.1:9"]) == 2
    shown = capsys.readouterr()
    assert "STRATA_API_KEY" in shown.err
    assert not any(part in shown.out + shown.err for part in ("geheim", "secret", "line\n", "ret"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["versions", "--url", "http://"], "names no host and port that exist"),
        (["chat", "hi", "--url", "http://["], "names no host and port that exist"),
        (["jobs", "--url", "http://127.0.0.1:99999"], "names no host and port that exist"),
        (["jobs", "--wait"], "--wait goes with one job: strata jobs JOB --wait"),
        (["jobs", "--cancel"], "--cancel goes with one job"),
        (["jobs", JOB_ID, "--cancel", "--wait"], "--cancel and --wait exclude each other"),
        (["jobs", "x/../files"], "'x/../files' is no job"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_asked(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert main([*words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo", "--pictures", "0"], "'0' is not a whole number of 1 or more"),
        (["demo", "--train", "-1"], "'-1' is not a whole number"),
        (["demo", "--concurrency", "x"], "'x' is not a whole number"),
        (["demo", "--port", "99999"], "'99999' is no port: use 1 to 65535"),
        (["jobs", "--limit", "0"], "'0' is not a whole number"),
        (["chat", "hi", "--temperature", "warm"], "'warm' is not a number"),
    ],
)
def test_numbers_that_cannot_be_are_a_wrong_command(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_plain_base_has_nothing_to_explain(answering: Answering, capsys: pytest.CaptureFixture[str]):
    found = {"model": "strata", "version": "base", "answered_by_base": True, "answered_by": None}
    url = answering(
        {"/v1/routing:explain": reply(200, {**found, "best_cosine": 0.0, "tau": 0.0, "increments": []})}
    )
    assert main(["explain", "hi", "--url", url]) == 0
    shown = capsys.readouterr().out
    assert "strata is the plain base now: no increments, nothing to explain" in shown
    assert "strata submit DATA --task NAME --wait" in shown
    assert "cosine" not in shown


def test_a_canary_is_shown_with_what_ends_it(answering: Answering, capsys: pytest.CaptureFixture[str]):
    url = answering(
        {
            "/v1/adapters/strata/canary": reply(200, CANARY),
            "/v1/adapters/bare/canary": reply(200, {**CANARY, "canary": None, "versions": []}),
        }
    )
    assert main(["canary", "--url", url]) == 0
    shown = capsys.readouterr().out
    assert "strata canary promote; none: strata canary rollback" in shown
    for ending in Rule().in_words():
        assert f"A canary ends by itself when {ending}." in shown
    assert main(["canary", "--url", url, "--name", "bare"]) == 0
    shown = capsys.readouterr().out
    assert "promote" not in shown
    assert "ends by itself" not in shown


def test_a_canary_is_shown_with_the_times_that_the_rule_compares(
    answering: Answering, capsys: pytest.CaptureFixture[str]
):
    (seen,) = CANARY["versions"]
    versions = [seen, {**seen, "slot": "canary", "version": "v4", "p95_token_seconds": None}]
    url = answering({"/v1/adapters/strata/canary": reply(200, {**CANARY, "versions": versions})})
    assert main(["canary", "--url", url]) == 0
    head, stable, canary = capsys.readouterr().out.splitlines()[2:5]
    assert head.split("  ")[-4:] == ["first token, p95", "further, p95", "thumbs up", "down"]
    assert stable.split()[5:9] == ["0.120", "s", "0.020", "s"]
    assert canary.split()[5:8] == ["0.120", "s", "-"]


def test_a_short_key_names_the_least_length(tmp_path: Path):
    done = strata("serve", "--home", tmp_path / "home", "--port", free_port(), STRATA_API_KEYS="short")
    assert done.returncode == 2
    assert "key 1 is shorter than 8 characters; take a longer one" in done.stderr
    assert "short'" not in done.stderr


def test_csv_and_json_exclude_each_other(capsys: pytest.CaptureFixture[str]):
    assert main(["matrix", "--csv", "--json"]) == 2
    assert "--csv and --json" in capsys.readouterr().out


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return what an 80 columns wide terminal shows."""
    screen = io.StringIO()
    console = Console(file=screen, width=80, highlight=False, soft_wrap=True)
    for module in ("output", "teach", "operate"):
        monkeypatch.setattr(f"server.cli.{module}.stdout", console)
    return screen


def test_job_ids_are_whole_however_narrow_the_output(answering: Answering, narrow: io.StringIO):
    job = {"id": JOB_ID, "task": "a-task-with-a-long-name", "status": "succeeded", "phase": "publish",
           "result_version": "v12", "created_at": 1732280000.0}  # fmt: skip
    url = answering({"/v1/fine_tuning/jobs": reply(200, {"data": [job]})})
    assert main(["jobs", "--url", url]) == 0
    (line,) = [line for line in narrow.getvalue().splitlines() if "succeeded" in line]
    assert line.split()[:5] == [JOB_ID, "a-task-with-a-long-name", "succeeded", "publish", "v12"]


def test_reasons_of_the_gate_stand_on_lines_of_their_own(answering: Answering, narrow: io.StringIO):
    reason = "digits fell from 96.0 % to 90.0 % on its held-out pictures; at most 2.0 points are allowed"
    held = {"version": "v2", "task": "birds", "decision": "expand", "parent": "v1",
            "gate": {"passed": False, "reasons": [reason]}}  # fmt: skip
    path = "/v1/adapters/strata/versions/v2"
    url = answering({path: reply(200, {**held, "promoted": False, "job_id": "job-1"})})
    assert main(["versions", "v2", "--url", url]) == 0
    lines = narrow.getvalue().splitlines()
    assert f"  - {reason}" in lines
    assert [line.split()[1:] for line in lines if line.startswith(("gate ", "job "))] == [
        ["held", "back"],
        ["job-1"],
    ]


def test_versions_are_one_line_each_and_what_was_promoted_is_no_candidate(
    answering: Answering, narrow: io.StringIO
):
    gate = {"passed": False, "reasons": ["digits fell"] * 5}
    data = [
        {"version": "v1", "task": "digits", "gate": {"passed": True, "reasons": []}, "promoted": True},
        {"version": "v2", "task": "birds", "gate": gate, "promoted": True},
        {"version": "v3", "task": "birds", "gate": gate, "promoted": False},
        {"version": "v4", "task": "birds", "gate": {"passed": True, "reasons": []}, "promoted": False},
    ]
    aliases = [{"alias": "stable", "version": "v2"}]
    url = answering({"/v1/adapters/strata/versions": reply(200, {"data": data, "aliases": aliases})})
    assert main(["versions", "--url", url]) == 0
    shown = narrow.getvalue()
    gates = {line.split()[0]: line for line in shown.splitlines() if line.startswith("v")}
    assert "held back, promoted" in gates["v2"]
    assert "held back" in gates["v3"]
    assert "promoted" not in gates["v3"]
    assert "passed, never promoted" in gates["v4"]
    assert "passed" in gates["v1"]
    assert "never" not in gates["v1"]
    assert "candidate" not in shown
    assert "digits fell" not in shown
    assert "strata versions VERSION" in shown


def test_promoting_what_the_gate_held_back_is_done_with_a_warning(
    answering: Answering, capsys: pytest.CaptureFixture[str]
):
    record = {"alias": "stable", "version": "v2", "warning": "the gate held v2 back: digits fell"}
    url = answering({"/v1/adapters/strata/aliases/stable": reply(200, record)})
    assert main(["promote", "v2", "--url", url]) == 0
    shown = capsys.readouterr()
    assert "stable now serves v2" in shown.out
    assert "the gate held v2 back: digits fell" in shown.err
