"""What `/openapi.json` shows can be sent as it stands, and is what is answered; the page needs no network."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.contract.conftest import RunningGateway
from tests.contract.publishing import Publisher

EXAMPLE = "example"
OPTIONAL = {"served"}
"""Only the alias that is served has it."""


@pytest.fixture(scope="module")
def spec(running: RunningGateway) -> dict[str, Any]:
    return running.http.get("/openapi.json").json()


def operations(spec: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, methods in spec["paths"].items()
        for method, operation in methods.items()
    ]


def resolved(spec: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return spec["components"]["schemas"][name] if name else schema


def body_examples(spec: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    """Return an example for each media type of the request body."""
    found = {}
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = resolved(spec, content.get("schema", {}))
        if kind == "multipart/form-data":
            parts = schema["properties"].items()
            found[kind] = {
                name: b"" if part.get("format") == "binary" else part.get(EXAMPLE) for name, part in parts
            }
        else:
            found[kind] = content.get(EXAMPLE, schema.get(EXAMPLE))
    return found


def test_every_endpoint_has_a_summary_and_examples_of_what_is_sent_and_answered(spec: dict[str, Any]):
    bare = []
    for method, path, operation in operations(spec):
        good = next(body for status, body in operation["responses"].items() if status.startswith("2"))
        bare += [(method, path, "summary")] * (not operation.get("summary"))
        bare += [(method, path, "answer")] * (not any(EXAMPLE in c for c in good.get("content", {}).values()))
        for kind, example in body_examples(spec, operation).items():
            empty = not example or (isinstance(example, dict) and None in example.values())
            bare += [(method, path, kind)] * empty
        for parameter in operation.get("parameters", ()):
            needed = parameter["required"] and parameter["in"] in ("path", "query")
            shown = EXAMPLE in parameter or "examples" in parameter.get("schema", {})
            bare += [(method, path, parameter["name"])] * (needed and not shown)
    assert bare == []


def test_errors_are_described_as_they_are(spec: dict[str, Any]):
    for method, path, operation in operations(spec):
        assert "422" not in operation["responses"], (method, path)
        for status in ("4XX", "5XX"):
            content = operation["responses"][status]["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Error"}
            assert set(content[EXAMPLE]["error"]) == {"message", "type", "param", "code"}


JSON_BODIES = {
    ("post", "/v1/chat/completions"): 200,
    ("post", "/v1/vqa"): 200,
    ("post", "/v1/routing:explain"): 200,
    ("post", "/v1/datasets:validate"): 200,
    ("post", "/v1/datasets"): 201,
    ("post", "/v1/tasks/{task}/batches"): 202,
}


@pytest.mark.parametrize(("method", "path"), JSON_BODIES)
def test_an_example_can_be_sent_as_it_stands(
    http: httpx.Client, spec: dict[str, Any], method: str, path: str
):
    operation = spec["paths"][path][method]
    example = body_examples(spec, operation)["application/json"]
    given = {p["name"]: p[EXAMPLE] for p in operation.get("parameters", ()) if p["in"] == "path"}
    answer = http.request(method, path.format(**given), json=example)
    assert answer.status_code == JSON_BODIES[method, path], answer.text


def test_the_answer_has_all_that_its_example_shows(
    http: httpx.Client, spec: dict[str, Any], publisher: Publisher
):
    """Published and sent first, so that each list has something in it."""
    version = publisher.publish(publisher.state(1)).version
    http.put("/v1/adapters/strata/aliases/stable", json={"version": version}).raise_for_status()
    sent = http.post("/v1/files", files={"file": ("a.json", b"[]")}, data={"purpose": "fine-tune"}).json()
    examples = {"examples": [{"question": "Which?", "answer": "seven"}]}
    job = http.post("/v1/tasks/digits/batches", json=examples).json()
    named = {
        "file_id": sent["id"],
        "job_id": job["id"],
        "dataset_id": job["dataset"]["id"],
        "version": version,
        "name": "strata",
        "alias": "stable",
        "model": "strata@base",
    }
    lacking = {}
    for method, path, operation in operations(spec):
        good = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
        needs_query = any(p["required"] and p["in"] == "query" for p in operation.get("parameters", ()))
        names = re.findall(r"{(\w+)}", path)
        if method != "get" or needs_query or EXAMPLE not in good or not set(names) <= set(named):
            continue
        answer = http.get(path.format(**named))
        assert answer.status_code == 200, (path, answer.text)
        missing = missing_keys(good[EXAMPLE], answer.json())
        if missing:
            lacking[path] = missing
    assert lacking == {}


def missing_keys(shown: Any, real: Any, place: str = "") -> list[str]:
    """Return what an example shows and the answer lacks; of a list its first item, if there is one."""
    if isinstance(shown, dict) and isinstance(real, dict) and shown and not place.endswith("_by_task"):
        found = [f"{place}.{name}" for name in shown if name not in real and name not in OPTIONAL]
        for name in set(shown) & set(real):
            if name not in ("routing_leak", "gate"):  # names of tasks, or nothing yet
                found += missing_keys(shown[name], real[name], f"{place}.{name}")
        return found
    if isinstance(shown, list) and isinstance(real, list) and shown and real:
        return missing_keys(shown[0], real[0], f"{place}[0]")
    return []


def test_the_page_and_all_it_loads_come_from_this_server(running: RunningGateway):
    with httpx.Client(base_url=running.url, trust_env=False) as stranger:
        page = stranger.get("/docs")
        assert page.status_code == 200
        loaded = set(re.findall(r"""(?:src|href)=["']([^"']+)["']""", page.text)) - {"data:,"}
        assets = {f"/docs/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js")}
        assert loaded == {*assets, "/openapi.json"}
        for address in loaded:
            asset = stranger.get(address)
            assert asset.status_code == 200, address
            again = stranger.get(address, headers={"if-none-match": asset.headers.get("etag", "none")})
            assert again.status_code == (304 if "etag" in asset.headers else 200)
        assert "://" not in page.text
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert "<script>" not in page.text
        assert stranger.get("/docs/../secrets").status_code == 401
        assert stranger.get("/docs/other.js").status_code == 401


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("gzip, deflate", "gzip"),
        ("gzip;q=0.5", "gzip"),
        ("*", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0, *", None),
        ("gzip;q=0.1, identity", None),
        ("br", None),
        ("", None),
    ],
)
def test_files_come_in_an_encoding_that_was_asked_for(http: httpx.Client, accept: str, encoding: str | None):
    answer = http.get("/docs/swagger-ui.css", headers={"accept-encoding": accept})
    assert answer.headers.get("content-encoding") == encoding


def test_a_tag_belongs_to_one_encoding(http: httpx.Client):
    tags = {}
    for encoding in ("gzip", "identity"):
        asked = {"accept-encoding": encoding}
        tags[encoding] = http.get("/docs/swagger-ui.css", headers=asked).headers["etag"]
        again = {**asked, "if-none-match": f'"other", W/{tags[encoding]}'}
        assert http.get("/docs/swagger-ui.css", headers=again).status_code == 304
    assert tags["gzip"] != tags["identity"]
    mixed = {"accept-encoding": "gzip", "if-none-match": tags["identity"]}
    assert http.get("/docs/swagger-ui.css", headers=mixed).status_code == 200
