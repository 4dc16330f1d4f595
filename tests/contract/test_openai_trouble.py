"""What the ``openai`` client does in trouble: it hears of it, waits as it is told, and tries again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from server.serving import open_serving
from tests.contract.conftest import KEY, RunningGateway, chat_body, wait_for
from tests.contract.pictures import examples

LONG = 900


def client_of(running: RunningGateway, retries: int) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=retries)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[RunningGateway]:
    """Return a gateway that answers one request at a time and lets one wait."""
    with RunningGateway(tmp_path_factory.mktemp("home"), tiny_base, max_batch=1, max_waiting=1) as gateway:
        yield gateway.wait_ready()


def test_a_request_to_a_server_that_still_starts_waits_and_is_answered(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
):
    """503 with Retry-After until the base is loaded: nobody has to poll /ready."""
    refused = threading.Event()

    async def open_once_refused(*given: Any, **named: Any) -> Any:
        await asyncio.to_thread(refused.wait, 60)
        return await open_serving(*given, **named)

    def note(answer: Any) -> None:
        if answer.status_code == 503:
            refused.set()

    monkeypatch.setattr("server.app.open_serving", open_once_refused)
    running = RunningGateway(tmp_path / "home", tiny_base)
    try:
        http = openai.DefaultHttpxClient(event_hooks={"response": [note]}, trust_env=False)
        base_url = f"{running.url}/v1"
        with openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=30, http_client=http) as client:
            raw = client.chat.completions.with_raw_response.create(**chat_body())
            assert raw.parse().choices[0].message.content is not None
            assert raw.retries_taken >= 1
    finally:
        running.stop()


def test_a_full_server_is_tried_again_after_the_time_it_names(narrow: RunningGateway):
    with client_of(narrow, 0) as hasty, client_of(narrow, 8) as patient:
        held = hasty.chat.completions.create(**chat_body(max_tokens=LONG), stream=True)
        next(held)
        waiting = threading.Thread(target=hasty.chat.completions.create, kwargs=chat_body())
        waiting.start()
        serving = narrow.gateway.serving
        assert serving is not None
        wait_for(lambda: serving.engine.stats().waiting == 1, 10)
        with pytest.raises(openai.RateLimitError) as caught:
            hasty.chat.completions.create(**chat_body())
        assert caught.value.code == "engine_busy"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        threading.Timer(0.2, held.close).start()
        raw = patient.chat.completions.with_raw_response.create(**chat_body())
        assert raw.retries_taken >= 1
        assert raw.parse().choices
        waiting.join(20)
        assert not waiting.is_alive()


def test_a_conflict_is_not_tried_again(narrow: RunningGateway):
    def conflicts() -> float:
        return narrow.metric("strata_http_requests_total", status="409") or 0.0

    options: Any = {"headers": {"Idempotency-Key": "one-batch-only"}}
    with client_of(narrow, 3) as client:
        path = "/tasks/colors/batches"
        client.post(path, body={"examples": examples(2)}, cast_to=object, options=options)
        before = conflicts()
        with pytest.raises(openai.ConflictError) as caught:
            client.post(path, body={"examples": examples(3)}, cast_to=object, options=options)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert conflicts() == before + 1


def test_an_error_in_mid_stream_raises_in_both_clients(tmp_path: Path, tiny_base: Path):
    """The engine stops while streams run: the clients must hear of it, not see a short answer."""
    running = RunningGateway(tmp_path / "home", tiny_base).wait_ready()
    body = chat_body(max_tokens=LONG)

    async def stop_and_listen() -> None:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as client:
            stream = await client.chat.completions.create(**body, stream=True)
            await anext(stream)
            serving = running.gateway.serving
            assert serving is not None
            await asyncio.to_thread(serving.engine.shutdown)
            with pytest.raises(openai.APIError, match="broken off"):
                async for _ in stream:
                    pass

    try:
        with client_of(running, 0) as client:
            stream = client.chat.completions.create(**body, stream=True)
            next(stream)
            asyncio.run(stop_and_listen())
            with pytest.raises(openai.APIError, match="broken off"):
                list(stream)
        assert running.http.get("/health").status_code == 503
    finally:
        running.stop()
