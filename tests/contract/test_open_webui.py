"""What Open WebUI 0.12.4 sends, as recorded: the question of its page, and what it asks on the side."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.contract.conftest import chat_body
from tests.contract.pictures import data_url, png

CHAT = "/v1/chat/completions"
QUESTION = "Which digit is it?"
FILE = (
    '<file type="file" id="52a2e721-a621-4107-8e29-5874658d5836" url="52a2e721-a621-4107-8e29-5874658d5836"'
    ' content_type="image/png" name="{name}"/>\n'
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_current_timestamp",
        "description": "Get the current Unix timestamp in seconds.",
        "parameters": {"properties": {}, "type": "object"},
    },
}
TITLE = """### Task:
Generate a concise title summarizing the chat history.
### Output:
JSON format: { "title": "your concise title here" }
### Chat History:
<chat_history>
USER: Which digit is it?
ASSISTANT: \n</chat_history>"""


def file_list(*names: str) -> str:
    return "<attached_files>\n" + "".join(FILE.format(name=name) for name in names) + "</attached_files>\n\n"


def asked(http: httpx.Client, body: dict[str, Any]) -> tuple[str, int, httpx.Response]:
    """Return the streamed answer, the tokens of the prompt, and the response."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = http.post(CHAT, json={**body, **options})
    assert answer.status_code == 200, answer.text
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    return text, chunks[-1]["usage"]["prompt_tokens"], answer


def page_body(*content: dict[str, Any]) -> dict[str, Any]:
    picture = {"type": "image_url", "image_url": {"url": data_url(png("red"))}}
    message = {"role": "user", "content": [*content, picture]}
    return {"model": "strata", "messages": [message], "tools": [TOOL], "max_tokens": 6}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    "content",
    [
        [words(file_list("red.png")), words(QUESTION)],
        [words(file_list("a.png", "b > c.pdf")), words(QUESTION)],
        [words(file_list("red.png") + QUESTION)],
    ],
    ids=["its page", "several files", "one text"],
)
def test_the_list_of_files_before_a_question_is_no_part_of_it(http: httpx.Client, content: list[Any]):
    plain = asked(http, chat_body(QUESTION))
    decorated = asked(http, page_body(*content))
    assert decorated[:2] == plain[:2]
    assert decorated[2].headers["x-strata-warning"] == "ignored fields: tools"


def test_what_people_write_about_such_a_list_is_read(http: httpx.Client):
    plain = asked(http, chat_body(QUESTION))[1]
    for text in (f"What does {file_list('a.png')} mean?", "<attached_files>\n</attached_files>\n" + QUESTION):
        assert asked(http, page_body(words(text)))[1] > plain + 5


def test_a_later_turn_is_asked_with_the_picture_of_the_first(http: httpx.Client):
    turns = [{"role": "assistant", "content": "three"}, {"role": "user", "content": "Is it red?"}]
    bodies = (page_body(words(file_list("red.png")), words(QUESTION)), chat_body(QUESTION))
    first, second = [asked(http, {**body, "messages": body["messages"] + turns})[:2] for body in bodies]
    assert first == second


def test_a_title_is_asked_for_beside_the_first_question(http: httpx.Client):
    body = {"model": "strata", "messages": [{"role": "user", "content": TITLE}]}
    answer = http.post(CHAT, json={**body, "stream": False, "max_tokens": 1000})
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json()["choices"][0]["message"]["content"], str)
