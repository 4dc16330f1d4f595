"""The asynchronous ``openai`` client: the same answers, many at once, streams that are left, pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest

from tests.contract.conftest import KEY, RunningGateway, chat_body, wait_for
from tests.contract.pictures import llava_zip, png


@pytest.fixture
async def client(running: RunningGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


async def test_many_at_once_get_the_answers_they_get_alone(client: openai.AsyncOpenAI):
    colors = ("red", "green", "blue", "white", "black", "yellow")
    bodies = [chat_body(f"Question {n}?", image=png(color)) for n, color in enumerate(colors)]
    alone = [(await client.chat.completions.create(**body)).choices[0].message.content for body in bodies]
    together = await asyncio.gather(*(client.chat.completions.create(**body) for body in bodies))
    assert [answer.choices[0].message.content for answer in together] == alone


async def test_a_stream_says_the_same_and_ends_with_the_usage(client: openai.AsyncOpenAI):
    whole = await client.chat.completions.create(**chat_body(n=2, temperature=1.0, seed=5))
    stream = await client.chat.completions.create(
        **chat_body(n=2, temperature=1.0, seed=5), stream=True, stream_options={"include_usage": True}
    )
    texts = ["", ""]
    usage = None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert whole.usage is not None
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


async def test_a_stream_that_is_left_frees_its_place(running: RunningGateway, client: openai.AsyncOpenAI):
    stream = await client.chat.completions.create(**chat_body(max_tokens=900), stream=True)
    await anext(stream)
    await stream.close()
    serving = running.gateway.serving
    assert serving is not None
    await asyncio.to_thread(wait_for, lambda: serving.engine.stats().running == 0, 20)


async def test_errors_are_the_same_before_a_stream_and_without_one(client: openai.AsyncOpenAI):
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(**{**chat_body(), "model": "gpt-4o"}, stream=stream)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.chat.completions.create(**chat_body(n=0), stream=stream)
        assert wrong.value.param == "n"


async def test_files_jobs_and_models_in_pages(client: openai.AsyncOpenAI):
    data = [llava_zip(n) for n in (2, 3, 4)]
    sent = [await client.files.create(file=("c.zip", content), purpose="fine-tune") for content in data]
    assert [file.id async for file in client.files.list(limit=2)] == [file.id for file in reversed(sent)]
    jobs = [
        await client.fine_tuning.jobs.create(training_file=file.id, model="strata", metadata={"task": "t"})
        for file in sent
    ]
    listed = [job.id async for job in client.fine_tuning.jobs.list(limit=2)]
    assert listed == [job.id for job in reversed(jobs)]
    events = [event async for event in client.fine_tuning.jobs.list_events(jobs[0].id, limit=1)]
    assert len({event.id for event in events}) == len(events)
    assert (await client.fine_tuning.jobs.cancel(jobs[0].id)).status == "cancelled"
    assert "strata@base" in [model.id async for model in client.models.list()]
    assert (await (await client.files.content(sent[0].id)).aread()) == data[0]
