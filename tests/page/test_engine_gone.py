"""An engine that has died is told everywhere: a canary that answers nobody never looks as if it did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import RunningGateway, wait_for
from tests.contract.publishing import Publisher
from tests.page.browser import Browser

ALIASES = "/v1/adapters/strata/aliases"


@pytest.fixture
def running(tmp_path: Path, tiny_base: Path) -> Iterator[RunningGateway]:
    """Return a gateway of its own: its engine does not survive the test."""
    with RunningGateway(tmp_path / "home", tiny_base, api_keys="") as gateway:
        yield gateway.wait_ready()


def test_a_canary_of_a_dead_engine_is_idle(browser: Browser, running: RunningGateway, loaded_tiny_base):
    publisher = Publisher(loaded_tiny_base, running.gateway.store)
    version = publisher.publish(publisher.state(21)).version
    running.http.put(f"{ALIASES}/canary", json={"version": version, "weight": 0.25})
    shown = "/v1/adapters/strata/canary"
    wait_for(lambda: running.http.get(shown).json()["canary"]["answering"])
    page = browser.page().open(f"{running.url}/#memory")
    page.wait_text("#canary-roles", f"{version} answers 25 % of the requests")
    serving = running.gateway.serving
    assert serving is not None
    serving.engine.shutdown()
    found = running.http.get(shown).json()["canary"]
    assert (found["answering"], found["reason"]) == (False, "the engine has stopped; restart the server")
    assert running.http.get("/ready").json()["status"] == "failed"
    page.wait_text("#canary-roles", "takes none now: the engine has stopped")
    assert "canary, idle" in page.text("#canary-roles")
    page.wait_text("#state", "the engine has stopped")
    assert "Seen in live traffic" in page.text("#canary-seen")
    running.gateway.serving = None
    page.wait_text("#canary-roles", "What is on trial is not known now: the server is not ready")
    assert page.text("#canary-seen") == ""
    running.gateway.serving = serving
    page.wait_text("#canary-seen", "Seen in live traffic")
    page.forgiven.append("status of 503 (Service Unavailable)")
    assert page.complaints() == []
