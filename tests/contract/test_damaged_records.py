"""A damaged record of an alias is told with its cause and its cure, and nothing older is served instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapter_store.versions import VersionStore
from server.cli.main import main
from tests.contract.conftest import KEY, START_SECONDS, RunningGateway, wait_for

PLACE = "strata/aliases/stable/0000000002.json"


def test_a_gateway_that_cannot_read_where_stable_is_says_so_and_starts_once_it_can(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
):
    aliases = VersionStore(tmp_path / "home" / "versions", "strata").aliases
    for _ in range(2):
        aliases.move("stable", "base", reason="test", actor="test")
    record = tmp_path / "home" / "versions" / PLACE
    record.chmod(0o644)
    whole = record.read_bytes()
    record.write_bytes(b"")
    with RunningGateway(tmp_path / "home", tiny_base) as running:
        wait_for(lambda: PLACE in running.http.get("/ready").text, START_SECONDS)
        answer = running.http.get("/ready")
        state = answer.json()
        assert (answer.status_code, state["status"]) == (503, "starting")
        assert f"revision 2 of alias stable is damaged: restore {PLACE}" in state["reason"]
        assert str(tmp_path) not in answer.text
        assert main(["versions", "--json", "--url", running.url, "--api-key", KEY]) == 1
        error = json.loads(capsys.readouterr().out)["error"]
        assert f"restore {PLACE} in the version store from a backup, or remove it" in error["message"]
        assert str(tmp_path) not in error["message"]
        record.write_bytes(whole)
        running.wait_ready()
