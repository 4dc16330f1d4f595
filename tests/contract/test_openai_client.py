"""The real ``openai`` client works with a base URL and a key, and nothing else."""

from __future__ import annotations

import io
from typing import Any

import openai
import pytest

from tests.contract.conftest import ASK_KEY, RunningGateway, chat_body
from tests.contract.pictures import llava_zip


def test_a_picture_is_answered(client: openai.OpenAI):
    answer = client.chat.completions.create(**chat_body())
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.system_fingerprint == "base"
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same_in_the_known_order(client: openai.OpenAI):
    whole = client.chat.completions.create(**chat_body())
    stream = client.chat.completions.create(
        **chat_body(), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_n_seed_and_logprobs(client: openai.OpenAI):
    body = chat_body(n=3, temperature=1.5, seed=7, logprobs=True, top_logprobs=2)
    first, second = (client.chat.completions.create(**body) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) > 1
    logprobs = first.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in logprobs.content)


def test_a_stop_string_ends_the_answer(client: openai.OpenAI):
    whole = client.chat.completions.create(**chat_body(max_tokens=24)).choices[0].message.content or ""
    stop = whole[3:5]
    cut = client.chat.completions.create(**chat_body(max_tokens=24), stop=[stop]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_models(client: openai.OpenAI):
    ids = [model.id for model in client.models.list()]
    assert ids[0] == "strata"
    assert "strata@base" in ids
    assert client.models.retrieve("strata@base").id == "strata@base"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("strata@v99")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_version_is_a_404_that_lists_what_there_is(client: openai.OpenAI, stream: bool):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**{**chat_body(), "model": "strata@v99"}, stream=stream)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "strata@base" in caught.value.message


def test_faults_of_a_request_reach_the_caller(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        client.chat.completions.create(**chat_body(), temperature=-1)
    assert caught.value.param == "temperature"
    assert caught.value.request_id


def test_keys_and_scopes(running: RunningGateway):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="sk-wrong-key", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            stranger.models.list()
        assert caught.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=ASK_KEY, max_retries=0) as asker:
        assert asker.chat.completions.create(**chat_body()).choices
        with pytest.raises(openai.PermissionDeniedError):
            asker.files.list()


def test_files_and_fine_tuning(client: openai.OpenAI):
    data = llava_zip()
    sent = client.files.create(file=("colors.zip", io.BytesIO(data)), purpose="fine-tune")
    assert (sent.filename, sent.bytes, sent.purpose) == ("colors.zip", len(data), "fine-tune")
    assert sent.id in [item.id for item in client.files.list()]
    assert client.files.content(sent.id).read() == data
    job = client.fine_tuning.jobs.create(
        training_file=sent.id,
        model="strata",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        metadata={"task": "colors"},
    )
    assert job.status == "queued"
    assert job.training_file == sent.id
    assert job.metadata == {"task": "colors"}
    assert client.fine_tuning.jobs.retrieve(job.id).id == job.id
    assert job.id in [item.id for item in client.fine_tuning.jobs.list()]
    assert isinstance(list(client.fine_tuning.jobs.list_events(job.id)), list)
    assert list(client.fine_tuning.jobs.checkpoints.list(job.id)) == []
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.files.delete(sent.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(sent.id)


def test_text_alone_several_turns_and_both_system_roles(client: openai.OpenAI):
    first = client.chat.completions.create(
        model="strata",
        messages=[
            {"role": "system", "content": "Answer in one word."},
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": "Hello"},
        ],
        max_completion_tokens=4,
    )
    said: Any = first.choices[0].message.model_dump()  # with every field, null ones too, as programs send it
    body = chat_body("And now?")
    turns = [{"role": "user", "content": "Hello"}, said, *body["messages"]]
    second = client.chat.completions.create(**{**body, "messages": turns})
    assert first.usage is not None
    assert second.usage is not None
    assert first.usage.completion_tokens <= 4
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_two_pictures_in_one_question(client: openai.OpenAI):
    one = client.chat.completions.create(**chat_body())
    body = chat_body()
    content = body["messages"][0]["content"]
    body["messages"][0]["content"] = [*content, content[1]]
    two = client.chat.completions.create(**body)
    assert one.usage is not None
    assert two.usage is not None
    assert two.usage.prompt_tokens > one.usage.prompt_tokens


def test_a_stream_of_several_choices_carries_the_log_probabilities_of_the_whole_answer(client: openai.OpenAI):
    body = chat_body(n=2, temperature=1.2, seed=3, logprobs=True, top_logprobs=1)
    whole = client.chat.completions.create(**body)
    streamed: dict[int, list[float]] = {0: [], 1: []}
    texts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(**body, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.logprobs is not None and choice.logprobs.content:
                streamed[choice.index] += [token.logprob for token in choice.logprobs.content]
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert choice.logprobs is not None
        expected = [token.logprob for token in choice.logprobs.content or ()]
        assert streamed[choice.index] == pytest.approx(expected, abs=1e-4)


def test_the_stream_helper_of_the_client_collects_the_answer(client: openai.OpenAI):
    whole = client.chat.completions.create(**chat_body())
    with client.chat.completions.stream(**chat_body()) as stream:
        kinds = {event.type for event in stream}
        collected = stream.current_completion_snapshot
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert collected.choices[0].message.content == whole.choices[0].message.content


def test_headers_tell_the_version_the_request_and_what_was_ignored(client: openai.OpenAI):
    raw = client.chat.completions.with_raw_response.create(
        **chat_body(), parallel_tool_calls=True, user="someone"
    )
    assert raw.headers["x-adapter-version"] == raw.parse().system_fingerprint
    assert raw.headers["x-strata-warning"] == "ignored fields: parallel_tool_calls"
    assert raw.request_id


def test_what_is_not_offered_is_a_404_in_words(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="list of endpoints is at /docs"):
        client.embeddings.create(model="strata", input="hello")
    with pytest.raises(openai.NotFoundError, match="/v1/responses"):
        client.responses.create(model="strata", input="hello")
