"""What a web page of another site can make a browser send operates nothing; programs notice nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.origins import resolves_to_loopback
from tests.contract.conftest import RunningGateway

ALIASES = "/v1/adapters/strata/aliases"
CANARY = "/v1/adapters/strata/canary"
EVIL = {"origin": "https://evil.example"}
TEXT = {"content-type": "text/plain"}


@pytest.fixture(scope="module")
def keyless(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path_factory.mktemp("home"), tiny_base, api_keys="") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[RunningGateway]:
    """Return a gateway whose settings say that it listens on all addresses, as in a container."""
    names: dict[str, Any] = {"host": "0.0.0.0", "allowed_hosts": "strata.example, Other.example"}
    with RunningGateway(tmp_path_factory.mktemp("home"), tiny_base, api_keys="", **names) as gateway:
        yield gateway


@pytest.fixture
def canary(keyless: RunningGateway) -> None:
    named = keyless.http.put(f"{ALIASES}/canary", json={"version": "base", "weight": 0.1})
    assert named.status_code == 200, named.text


def refused(answer: httpx.Response, code: str) -> str:
    assert answer.status_code == 403, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("permission_error", code)
    assert answer.headers["x-request-id"]
    return error["message"]


@pytest.mark.parametrize(
    "marks",
    [
        EVIL,
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {**EVIL, "sec-fetch-site": "cross-site"},
    ],
    ids=lambda marks: " ".join(marks.values()),
)
@pytest.mark.usefixtures("canary")
def test_no_page_of_another_site_decides_about_a_canary(keyless: RunningGateway, marks: dict[str, str]):
    for act in ("promote", "rollback"):
        message = refused(keyless.http.post(f"{CANARY}:{act}", headers={**TEXT, **marks}), "cross_site")
        cause = "Sec-Fetch-Site" if "sec-fetch-site" in marks else "Origin"
        assert "web page of another site" in message
        assert message.endswith(f"leave out the header {cause}")
    refused(keyless.http.request("DELETE", f"{ALIASES}/canary", headers=marks), "cross_site")
    assert keyless.http.get(f"{ALIASES}/canary").json()["version"] == "base"
    assert keyless.http.get(f"{ALIASES}/stable", headers=marks).status_code in (200, 404)


def test_no_page_of_another_site_teaches_or_uploads(keyless: RunningGateway):
    refused(keyless.http.post("/v1/feedback", content='{"rating": "up"}', headers=TEXT | EVIL), "cross_site")
    form: dict[str, Any] = {"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "fine-tune"}}
    refused(keyless.http.post("/v1/files", headers=EVIL, **form), "cross_site")
    assert keyless.http.get("/v1/files").json()["data"] == []


@pytest.mark.usefixtures("canary")
def test_programs_and_the_own_page_are_served(keyless: RunningGateway):
    own_page = {"origin": keyless.url, "sec-fetch-site": "same-origin"}
    plain_http = {"origin": keyless.url}
    typed = {"sec-fetch-site": "none"}
    for marks in ({}, own_page, plain_http, typed):
        given = keyless.http.post("/v1/feedback", json={"rating": "up"}, headers=marks)
        assert given.status_code == 200, given.text
    port = keyless.url.rpartition(":")[2]
    for host in (f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", "127.0.0.1", f"127.0.0.1:{port}"):
        assert keyless.http.get("/health", headers={"host": host}).status_code == 200, host
    assert keyless.http.post(f"{CANARY}:rollback").status_code == 200


@pytest.mark.parametrize("host", ["evil.example:8000", "127.0.0.1.evil.example", "[", "a[b", "user@evil", ""])
def test_without_keys_no_other_name_is_answered(keyless: RunningGateway, host: str):
    for method, path in (("GET", "/"), ("GET", ALIASES), ("GET", "/metrics"), ("POST", "/v1/feedback")):
        message = refused(keyless.http.request(method, path, headers={"host": host}), "unknown_host")
        assert "STRATA_API_KEYS" in message


@pytest.mark.parametrize("host", ["evil.example", "a.strata.example", "1.2.3.4.evil.example:80", "[", ""])
def test_in_a_container_no_name_of_a_stranger_is_answered(published: RunningGateway, host: str):
    """A page whose own name is turned to the published port of the compose file could read all else."""
    message = refused(published.http.get(ALIASES, headers={"host": host}), "unknown_host")
    assert "STRATA_ALLOWED_HOSTS" in message
    for ours in (
        "localhost:8000",
        "192.168.0.7:8000",
        "[fe80::1]",
        "gateway",
        "STRATA.example",
        "other.example:80",
        "host.docker.internal:8000",
        "gateway.monitoring.svc",
        "box.local",
    ):
        assert published.http.get(ALIASES, headers={"host": ours}).status_code == 200, ours


def test_a_container_is_scraped_by_its_name_and_safe_from_pages_all_the_same(published: RunningGateway):
    assert published.http.get("/metrics", headers={"host": "gateway:8000"}).status_code == 200
    named = {"host": "strata.example"}
    body = {"rating": "up"}
    for origin, status in (
        ("https://strata.example", 200),
        ("https://strata.example:443", 200),
        ("https://strata.example:8443", 403),
        ("https://evil.example", 403),
    ):
        answer = published.http.post("/v1/feedback", json=body, headers={**named, "origin": origin})
        assert answer.status_code == status, origin
    behind_a_proxy = {"origin": "https://strata.example", "sec-fetch-site": "same-origin"}
    assert published.http.post("/v1/feedback", json=body, headers=behind_a_proxy).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "text/json"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/feedback", {"rating": "up"}),
        ("POST", "/v1/vqa", {"question": "What is it?"}),
        ("POST", "/v1/datasets", {"examples": []}),
        ("POST", "/v1/datasets:validate", {"examples": []}),
        ("POST", f"{CANARY}:rollback", {"reason": "x"}),
        ("PUT", f"{ALIASES}/canary", {"version": "base", "weight": 0.1}),
    ],
)
def test_what_is_not_declared_as_json_is_not_read_as_json(
    keyless: RunningGateway, method: str, path: str, body: dict[str, Any], kind: str
):
    headers = {"content-type": kind} if kind else {}
    answer = keyless.http.request(method, path, content=json.dumps(body), headers=headers)
    assert answer.status_code == 400, answer.text
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


def test_json_may_have_a_charset_or_a_suffix(keyless: RunningGateway):
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/problem+json"):
        answer = keyless.http.post("/v1/feedback", content='{"rating": "up"}', headers={"content-type": kind})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.7", False),
        ("no-such-name.invalid", False),
    ],
)
def test_which_addresses_are_this_machine_alone(host: str, alone: bool):
    assert resolves_to_loopback(host) is alone


def test_the_name_that_the_settings_give_is_answered(tmp_path: Path, tiny_base: Path):
    with RunningGateway(tmp_path, tiny_base, api_keys="", host="127.0.0.2") as running:
        assert running.http.get("/health", headers={"host": "127.0.0.2:8000"}).status_code == 200
        refused(running.http.get("/health", headers={"host": "evil.example"}), "unknown_host")
