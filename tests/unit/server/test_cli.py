"""Check the command line tool: its verbs, its flags, its errors, its output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapter_store.datasets import DatasetRef
from adapter_store.errors import InputError
from adapter_store.jobs import Job, JobStatus
from server.cli import output, teach
from server.cli.client import Client, RequestFailed, RequestRefused
from server.cli.main import build_parser, main
from server.cli.reporter import readable
from server.cli.watch import JobProgress
from server.jobs.protocol import job_body
from server.launch.flags import variables_of_flags
from tests.scripted_http import Reply, reply
from tests.unit.server.conftest import Answering

VERBS = (
    "up serve work demo chat correct submit jobs versions promote rollback matrix base export import".split()
)


def test_every_verb_has_a_line_of_help_and_json(capsys: pytest.CaptureFixture[str]):
    text = build_parser().format_help()
    for verb in VERBS:
        assert f"\n    {verb}" in text
        if verb in {"serve", "work"}:
            continue  # theirs is the program's own: test_help_of_a_program_lists_its_settings
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0
        assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["fly"], [], ["versions", "--flavor"], ["submit"], ["promote"]])
def test_a_wrong_command_line_ends_with_status_2(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: strata" in capsys.readouterr().err


def test_flags_become_variables():
    found = variables_of_flags(["--port", "8001", "--max-forgetting=0.05"])
    assert found == {"STRATA_PORT": "8001", "STRATA_MAX_FORGETTING": "0.05"}


def test_all_faulty_flags_are_named_at_once():
    with pytest.raises(InputError) as caught:
        variables_of_flags(["--prot", "1", "--home", "--port", "8001", "stray"])
    message = caught.value.message
    assert "--prot is not a flag; did you mean --port?" in message
    assert "--home needs a value" in message
    assert "stray is not a flag" in message


def test_a_misspelled_flag_of_up_ends_with_status_2(capsys: pytest.CaptureFixture[str]):
    assert main(["up", "--prot", "8001"]) == 2
    assert "did you mean --port?" in capsys.readouterr().err


def test_no_server_is_said_in_words(capsys: pytest.CaptureFixture[str]):
    assert main(["versions", "--url", "http://127.0.0.1:9"]) == 1
    captured = capsys.readouterr()
    assert "no server answers at http://127.0.0.1:9; start one with `strata up`" in captured.err
    assert "Traceback" not in captured.err


def test_errors_are_json_when_asked_for(capsys: pytest.CaptureFixture[str]):
    assert main(["versions", "--json", "--url", "ftp://x"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["error"]["code"] == "invalid_request"
    assert "ftp://x" in found["error"]["message"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, RequestRefused), (404, RequestRefused), (503, RequestFailed), (500, RequestFailed)],
)
def test_the_servers_own_words_are_passed_on(answering: Answering, status: int, kind: type[Exception]):
    url = answering({"/v1/models": reply(status, {"error": {"message": "because of the moon"}})})
    with Client(url) as client, pytest.raises(kind, match="because of the moon"):
        client.get("/v1/models")


@pytest.mark.parametrize(
    ("status", "code", "advised"),
    [(401, "invalid_api_key", True), (403, "wrong_scope", True), (403, "unknown_host", False)],
)
def test_a_key_is_advised_only_where_one_would_help(
    answering: Answering, status: int, code: str, advised: bool
):
    url = answering({"/v1/models": reply(status, {"error": {"message": "not so", "code": code}})})
    with Client(url) as client, pytest.raises(RequestFailed) as caught:
        client.get("/v1/models")
    assert ("--api-key" in caught.value.message) is advised


def test_every_fault_of_a_data_set_is_shown(
    answering: Answering, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    faults = [
        {"file": "data.json", "line": 3, "field": "image", "reason": "a.png is not in the archive"},
        {"file": None, "line": None, "field": "", "reason": "no answers"},
    ]
    report = {"faults": faults, "truncated_faults": 7}
    url = answering(
        {"/v1/tasks/digits/batches": reply(400, {"error": {"message": "2 faults", "report": report}})}
    )
    file = tmp_path / "data.zip"
    file.write_bytes(b"x")
    assert main(["submit", str(file), "--task", "digits", "--url", url]) == 2
    shown = capsys.readouterr().err
    assert "data.json, line 3, image: a.png is not in the archive" in shown
    assert "  no answers" in shown
    assert "and 7 more" in shown


GATE_PASSED = {"passed": True, "reasons": []}


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ({**GATE_PASSED, "promotion": "promoted"}, "taught: v2 was served"),
        ({**GATE_PASSED, "promotion": "conflict"}, "taught, not served: v2 passed the gate"),
        ({**GATE_PASSED, "promotion": "superseded"}, "taught: v2 was served"),
        ({"passed": False, "reasons": ["it forgot"], "promotion": "held_back"}, "v2, because it forgot"),
    ],
)
def test_submit_says_whether_the_version_is_served(
    answering: Answering,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    gate: dict[str, object],
    said: str,
):
    ended = Job(
        lineage="strata",
        task="digits",
        dataset=DatasetRef("ds-1", examples=1, images=0, digest="0" * 64),
        status=JobStatus.SUCCEEDED,
        result_version="v2",
        gate=gate,
    )
    job = {**job_body(ended, "strata", frozenset()), "id": "job-1"}
    url = answering(
        {
            "/v1/tasks/digits/batches": reply(202, {**job, "status": "queued"}),
            "/v1/fine_tuning/jobs/job-1": reply(200, job),
            "/v1/fine_tuning/jobs/job-1/events": reply(200, {"data": []}),
        }
    )
    file = tmp_path / "data.json"
    file.write_text("[]")
    served = gate["promotion"] in ("promoted", "superseded")
    for words in (["submit", str(file), "--task", "digits", "--wait"], ["jobs", "job-1", "--wait"]):
        assert main([*words, "--url", url, "--json"]) == (0 if served else 3)
    capsys.readouterr()
    assert main(["submit", str(file), "--task", "digits", "--wait", "--url", url]) == (0 if served else 3)
    shown = capsys.readouterr().out
    assert said in shown
    assert ("strata promote v2" in shown) == (not served)


def test_a_followed_job_that_failed_ends_with_status_1_and_shows_its_last_events(
    answering: Answering, capsys: pytest.CaptureFixture[str]
):
    job = {"id": "job-1", "status": "failed", "error": {"message": "no room"}}
    events = [{"id": f"{n}-0", "type": "message", "message": f"event {n}."} for n in range(30)][::-1]
    url = answering(
        {
            "/v1/fine_tuning/jobs/job-1": reply(200, job),
            "/v1/fine_tuning/jobs/job-1/events": reply(200, {"data": events, "has_more": False}),
        }
    )
    assert main(["jobs", "job-1", "--url", url]) == 0
    shown = capsys.readouterr().out
    assert "event 29." in shown
    assert "event 9." not in shown
    assert main(["jobs", "job-1", "--wait", "--url", url]) == 1


def test_every_submission_carries_a_key_of_its_own(answering: Answering, tmp_path: Path):
    job = reply(200, {"id": "job-1", "status": "queued"})
    url = answering(
        {
            "/v1/tasks/digits/batches": job,
            "/v1/fine_tuning/jobs": job,
            "/v1/files": reply(200, {"id": "file-1"}),
            "/v1/models": reply(200, {"data": [{"id": "strata"}]}),
        }
    )
    file = tmp_path / "data.json"
    file.write_text("[]")
    with Client(url) as client:
        teach.submit_file(client, file, "digits")
        teach.submit_file(client, file, None)
    keys = [key for key in answering.keys if key]
    assert len(keys) == len(set(keys)) == 2


def test_a_missing_key_says_how_to_give_one(answering: Answering):
    url = answering({"/v1/models": reply(401, {"error": {"message": "no key"}})})
    with Client(url) as client, pytest.raises(RequestFailed, match="no key; give the key with --api-key"):
        client.get("/v1/models")


def test_an_answer_of_something_else_is_not_a_traceback(answering: Answering):
    url = answering({"/v1/models": Reply(200, "text/html", b"<html>hello</html>")})
    with Client(url) as client, pytest.raises(RequestFailed, match="is it a Strata server"):
        client.get("/v1/models")


def test_a_stream_ends_at_done_and_raises_errors_in_the_middle(answering: Answering):
    good = b'data: {"a": 1}\n\ndata: [DONE]\n\ndata: {"a": 2}\n\n'
    bad = b'data: {"a": 1}\n\ndata: {"error": {"message": "the engine stopped"}}\n\ndata: [DONE]\n\n'
    kind = "text/event-stream"
    url = answering({"/good": Reply(200, kind, good), "/bad": Reply(200, kind, bad)})
    with Client(url) as client:
        assert list(client.stream("/good", {})) == [{"a": 1}]
        with pytest.raises(RequestFailed, match="the engine stopped"):
            list(client.stream("/bad", {}))


def test_chat_streams_and_names_the_version(answering: Answering, capsys: pytest.CaptureFixture[str]):
    events = [
        {"model": "strata", "system_fingerprint": "strata@v2", "choices": [{"delta": {"role": "assistant"}}]},
        {"model": "strata", "choices": [{"delta": {"content": "a "}}]},
        {"model": "strata", "choices": [{"delta": {"content": "cat"}, "finish_reason": "stop"}]},
        {"model": "strata", "choices": [], "usage": {"total_tokens": 9}},
    ]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    url = answering({"/v1/chat/completions": Reply(200, "text/event-stream", body.encode())})
    assert main(["chat", "--url", url, "What is it?"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "a cat\n"
    assert "strata@v2" in captured.err
    assert main(["chat", "--json", "--url", url, "What is it?"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answer"] == "a cat"
    assert (found["finish_reason"], found["version"], found["usage"]) == (
        "stop",
        "strata@v2",
        {"total_tokens": 9},
    )


def test_a_picture_that_is_not_there_ends_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["chat", "--image", str(tmp_path / "none.png"), "What is it?"]) == 2
    assert "cannot read the picture" in capsys.readouterr().err


def test_names_are_checked_before_anything_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "a.json"
    file.write_text("[]")
    assert main(["submit", str(file), "--task", "../up"]) == 2
    assert main(["promote", "latest"]) == 2
    assert main(["rollback", "--alias", "v3"]) == 2
    assert main(["submit", str(tmp_path / "none.json"), "--task", "digits"]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_a_folder_is_packed_without_links(tmp_path: Path):
    import zipfile

    folder = tmp_path / "digits"
    (folder / "images").mkdir(parents=True)
    (folder / "data.json").write_text("[]")
    (folder / "images" / "1.png").write_bytes(b"x")
    (folder / "secret").symlink_to("/etc/passwd")
    with zipfile.ZipFile(teach._pack(folder, tmp_path)) as archive:
        assert archive.namelist() == ["data.json", "images/1.png"]


def test_hyperparameters_get_their_types():
    found = teach._hyperparameters(["rank=4", "theta=0.5", "share=true", "ema_mode=fixed"])
    assert found == {"rank": 4, "theta": 0.5, "share": True, "ema_mode": "fixed"}
    with pytest.raises(InputError, match="NAME=VALUE"):
        teach._hyperparameters(["rank"])


def test_log_lines_are_made_readable_and_others_left_alone():
    line = {
        "time": "2026-01-31T12:00:01.5Z",
        "level": "info",
        "message": "request",
        "status": 200,
        "request_id": "r",
    }
    assert readable(json.dumps(line)) == "12:00:01 request status=200"
    assert readable(json.dumps({**line, "level": "error"})).startswith("error: 12:00:01 request")
    assert readable("{plain}") == "{plain}"
    assert readable("[1]") == "[1]"


def test_control_characters_and_markup_do_not_reach_the_terminal():
    assert "\x1b" not in output.clean("\x1b[2Jhello")
    assert output.clean("[red]x[/]") == r"\[red]x\[/]"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.25, "0.2 s"), (45, "45 s"), (125, "2 min 05 s"), (3900, "1 h 05 min")],
)
def test_spans_of_time_are_readable(seconds: float | None, text: str):
    assert output.duration(seconds) == text


def test_progress_folds_events_into_phases_and_a_training_line():
    progress = JobProgress("learning digits")
    progress.update(
        {"status": "running", "phase": "train"},
        [
            {"id": "1", "type": "phase", "message": "validate", "data": {"phase": "validate"}},
            {"id": "2", "type": "phase", "message": "train", "data": {"phase": "train"}},
            {
                "id": "3",
                "type": "metrics",
                "data": {"loss": 1.5, "step": 10, "total_steps": 40, "eta_seconds": 30},
            },
        ],
    )
    assert list(progress.phases) == ["queued", "validate", "train"]
    early = JobProgress("learning digits")
    prepared = {"id": "1", "type": "message", "data": {"prepared": 32, "to_prepare": 900}}
    early.update({"status": "running", "phase": "train"}, [prepared])
    assert early.training_line() == "32/900 examples prepared"
    assert progress.training_line() == "step 10/40  loss 1.500  30 s left"
    assert progress.line().startswith("learning digits: train the increments step 10/40")
    progress.update({"status": "succeeded", "phase": "publish"}, [])
    assert progress.ended_at is not None
    assert "left" not in progress.training_line()
