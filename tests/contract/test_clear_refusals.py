"""What is refused says what is wrong, where, and what would do."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.contract.conftest import chat_body
from tests.contract.publishing import Publisher

CHAT = "/v1/chat/completions"
EXAMPLES = [{"question": "Which?", "answer": "seven"}]


def refused(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize(
    "field",
    [
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "seed",
        "n",
        "frequency_penalty",
        "presence_penalty",
        "top_logprobs",
    ],
)
@pytest.mark.parametrize("value", [True, False])
def test_true_and_false_are_no_numbers_of_a_chat(http: httpx.Client, field: str, value: bool):
    error = refused(http.post(CHAT, json={**chat_body(), field: value}))
    assert error["param"] == field
    assert error["message"] == f"{field}: must be a number, not true or false"


def test_whole_numbers_may_be_written_with_a_point(http: httpx.Client):
    assert http.post(CHAT, json={**chat_body(), "max_tokens": 2.0, "temperature": 0}).status_code == 200


@pytest.mark.parametrize("name", ["n_epochs", "batch_size", "seed", "learning_rate_multiplier"])
def test_true_is_no_number_of_a_job(http: httpx.Client, name: str):
    batch = {"examples": EXAMPLES, "hyperparameters": {name: True}}
    error = refused(http.post("/v1/tasks/digits/batches", json=batch))
    assert f"{name}: must be a number, not true or false" in error["message"]
    job = {"training_file": "file-1", "model": "strata", "seed": True}
    assert refused(http.post("/v1/fine_tuning/jobs", json=job))["param"] == "seed"
    alias = http.put("/v1/adapters/strata/aliases/canary", json={"version": "base", "weight": True})
    assert refused(alias)["param"] == "weight"
    assert (
        refused(http.post("/v1/vqa", json={"question": "Which?", "max_tokens": True}))["param"]
        == "max_tokens"
    )


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/fine_tuning/jobs", "/v1/vqa", "/v1/feedback", "/v1/datasets:validate"]
)
@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{\n  "model": "strata"\n  "n": 1}', "is not JSON at line 3, column 3: Expecting ',' delimiter"),
        (b'{"model": }', "is not JSON at line 1, column 11: Expecting value"),
        (
            b"{'model': 1}",
            "is not JSON at line 1, column 2: Expecting property name enclosed in double quotes",
        ),
        (b'{"model": "str', "is not JSON at line 1, column 11: Unterminated string"),
        (b"{} {}", "is not JSON at line 1, column 4: Extra data"),
    ],
)
def test_broken_json_is_shown_its_place(http: httpx.Client, path: str, raw: bytes, words: str):
    error = refused(http.post(path, content=raw, headers={"content-type": "application/json"}))
    assert error["message"].startswith(f"the body {words}")


@pytest.mark.parametrize(
    ("path", "named"),
    [("/v1/feedback", "rating"), ("/v1/vqa", "question"), ("/v1/tasks/digits/batches", "examples")],
)
@pytest.mark.parametrize(
    ("sent", "kind"),
    [([], "a list"), ("up", "a text"), (1, "a number"), (True, "true or false"), (None, "null")],
)
def test_what_is_no_object_is_told_what_one_would_be(
    http: httpx.Client, path: str, named: str, sent: Any, kind: str
):
    raw = json.dumps(sent)
    error = refused(http.post(path, content=raw, headers={"content-type": "application/json"}))
    assert error["message"].startswith(f'the body is {kind}; send a JSON object such as {{"{named}": ')


@pytest.mark.parametrize(
    ("path", "is_a_form_taken"),
    [("/v1/feedback", False), ("/v1/vqa", True), ("/v1/tasks/digits/batches", True)],
)
def test_a_body_of_another_type_is_told_what_is_taken(http: httpx.Client, path: str, is_a_form_taken: bool):
    for content, kind in ((b"", "application/json"), (b"{}", "text/plain")):
        message = refused(http.post(path, content=content, headers={"content-type": kind}))["message"]
        assert "send a JSON object as the body, with Content-Type: application/json" in message
        assert ("multipart/form-data" in message) == is_a_form_taken


def test_an_unknown_model_is_told_the_newest_and_where_the_others_are(
    http: httpx.Client, publisher: Publisher
):
    state = publisher.state(1)
    known = [publisher.publish(state).version for _ in range(9)]
    for answer in (
        http.post(CHAT, json=chat_body() | {"model": "llava"}),
        http.post("/v1/vqa", json={"question": "Which?", "model": "llava"}),
        http.get("/v1/models/llava"),
    ):
        error = refused(answer, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        names = error["message"].partition("there are: ")[2]
        assert names.startswith("strata, strata@")
        assert f"strata@{known[-1]}, strata@{known[-2]}" in names
        assert names.endswith(" and 2 more (GET /v1/models lists them)")


def test_a_form_whose_file_came_as_text_is_told_how_to_send_it(http: httpx.Client):
    answer = http.post("/v1/tasks/birds/batches", files={"file": (None, "birds.zip")})
    assert answer.status_code == 400
    assert "write -F file=@FILE" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "file"
