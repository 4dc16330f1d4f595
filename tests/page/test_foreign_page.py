"""A page of another origin, shown by a real browser on the same machine, changes nothing on the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.conftest import RunningGateway
from tests.page.browser import Browser
from tests.scripted_http import Reply, ScriptedServer


@pytest.fixture
def evil() -> Iterator[str]:
    """Return the address of a page of another port; the browser of the tests knows no other name."""
    page = Reply(200, "text/html", b"<!doctype html><title>kittens</title>")
    server = ScriptedServer(lambda _: page)
    yield f"{server.url}/"
    server.stop()


def test_its_requests_are_refused(browser: Browser, running: RunningGateway, evil: str):
    adapter = "/v1/adapters/strata"
    named = running.http.put(f"{adapter}/aliases/canary", json={"version": "base", "weight": 0.5})
    assert named.status_code == 200, named.text
    refused = {"route": "unmatched", "method": "POST", "status": "403"}
    before = running.metric("strata_http_requests_total", **refused) or 0
    page = browser.page()
    page.call("Page.navigate", url=evil)
    page.wait("document.title === 'kittens'")
    sent = f"fetch('{running.url}{adapter}/canary:rollback', {{method: 'POST', mode: 'no-cors'}})"
    assert page.js(f"{sent}.then((answer) => answer.type)") == "opaque"
    page.js("data = new FormData(); data.append('file', new Blob(['x']), 'a.jsonl')")
    upload = f"fetch('{running.url}/v1/files', {{method: 'POST', mode: 'no-cors', body: data}})"
    assert page.js(f"{upload}.then((answer) => answer.type)") == "opaque"
    assert running.metric("strata_http_requests_total", **refused) == before + 2
    assert running.http.get(f"{adapter}/aliases/canary").json()["version"] == "base"
    assert running.http.get("/v1/files").json()["data"] == []
