"""Corrections as tests give them over HTTP."""

from __future__ import annotations

from typing import Any

import httpx

from tests.contract.pictures import data_url, png

FEEDBACK = "/v1/feedback"


def body(size: int = 28, **changes: Any) -> dict[str, Any]:
    given = {
        "rating": "down",
        "question": "What is shown?",
        "image": data_url(png("red", size)),
        "answer": "a dog",
        "correction": "a cat",
        "task": "animals",
        "version": None,
        "request_id": None,
    }
    return {**given, **changes}


def given(http: httpx.Client, **changes: Any) -> dict[str, Any]:
    answer = http.post(FEEDBACK, json=body(**changes))
    assert answer.status_code == 200, answer.text
    return answer.json()


def standing(http: httpx.Client, task: str) -> dict[str, Any]:
    listed = http.get(FEEDBACK).json()["data"]
    return next(item for item in listed if item["task"] == task)
