"""What cannot be done is said in a sentence, with the right exit status, and without secrets."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server.cli.main import main


@pytest.mark.parametrize("key", ["sk a\nb", "sk-\u00e9", "a b"])
def test_a_key_that_cannot_be_sent_is_refused_and_never_shown(key: str, capsys: pytest.CaptureFixture[str]):
    assert main(["jobs", "--api-key", key]) == 2
    told = "".join(capsys.readouterr())
    assert "STRATA_API_KEY" in told
    assert key not in told


def test_impossible_wishes_are_said(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["chat", "--temperature", "nan", "hi"])
    assert stop.value.code == 2
    assert "--temperature" in capsys.readouterr().err
    assert main(["matrix", "--csv", "--json"]) == 2


@pytest.mark.parametrize(("verb", "setting"), [("serve", "--max-batch"), ("work", "--max-forgetting")])
def test_help_of_a_program_lists_its_settings(verb: str, setting: str):
    done = subprocess.run(
        [sys.executable, "-m", "server.cli.main", verb, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert setting in done.stdout


@pytest.mark.parametrize("command", [["up"], ["serve"], ["work", "--metrics-port", "0"]])
def test_a_home_that_cannot_be_is_a_sentence(command: list[str], tmp_path: Path):
    (tmp_path / "file").touch()
    words = [sys.executable, "-m", "server.cli.main", *command, "--home", str(tmp_path / "file")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "STRATA_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_a_sentence_and_every_log_line_is_json(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = [sys.executable, "-m", "server", "--home", str(tmp_path), "--port", port]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is taken by another program" in done.stderr


def test_warnings_of_others_are_logged_as_json():
    code = "import logging, server.logs as l; l.configure_logs(); logging.getLogger('x').warning('y')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr)["message"] == "y"
