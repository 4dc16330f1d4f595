"""Questions on their way to the engine: routed in batches, new texts beside pictures, faults to their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch
from PIL import Image

from adapter_store.base.load import Base
from adapter_store.encoder import SentenceEncoder
from adapter_store.errors import EngineBusy, UnavailableError
from adapter_store.rendering import Message, Renderer
from adapter_store.vision import VisionEncoder
from benchmarks.live.versions import VersionMaker
from server.retrieval import Prepared, Question, Retriever


class NotingEncoder(SentenceEncoder):
    """The real encoder; notes which thread ran it, and fails if it is told to."""

    failing = False
    ran: list[tuple[str, list[str]]]

    def _run(self, texts: list[str]) -> dict[str, torch.Tensor]:
        self.__dict__.setdefault("ran", []).append((threading.current_thread().name, sorted(texts)))
        if self.failing:
            raise RuntimeError("the encoder is broken")
        return super()._run(texts)


@pytest.fixture
def sentences(loaded_tiny_base: Base) -> NotingEncoder:
    assert loaded_tiny_base.sentence_encoder is not None
    return NotingEncoder(loaded_tiny_base.sentence_encoder)


@pytest.fixture
def retriever(loaded_tiny_base: Base, sentences: NotingEncoder) -> Iterator[Retriever]:
    base = loaded_tiny_base
    retriever = Retriever(base, Renderer(base), VisionEncoder(base), sentences)
    yield retriever
    retriever.close()


def questions(base: Base, count: int) -> list[Question]:
    state = VersionMaker(base, 0.0).state(1)
    pictures = [Image.new("RGB", (28, 28), (40 * number, 0, 0)) for number in range(count)]
    return [
        Question((Message("user", f"What is number {number}?", 1),), (picture,), state)
        for number, picture in enumerate(pictures)
    ]


async def test_encoded_pictures_serve_another_state(loaded_tiny_base: Base, retriever: Retriever):
    (asked,) = questions(loaded_tiny_base, 1)
    other = VersionMaker(loaded_tiny_base, 0.0).state(2)
    wanted = await retriever.prepare(replace(asked, state=other))
    first = await retriever.prepare(asked)
    again, beside = await asyncio.gather(
        retriever.prepare(Question(asked.messages, (), other, None, first.images)), retriever.prepare(asked)
    )
    assert again.input_ids == wanted.input_ids
    assert [a is b for a, b in zip(again.images, first.images, strict=True)] == [True]
    assert torch.equal(again.coefficients, wanted.coefficients)  # type: ignore[arg-type]
    assert torch.equal(beside.coefficients, first.coefficients)  # type: ignore[arg-type]


async def test_every_text_is_encoded_once_and_off_the_event_loop(
    loaded_tiny_base: Base, retriever: Retriever, sentences: NotingEncoder
):
    asked = questions(loaded_tiny_base, 4)
    first = await asyncio.gather(*(retriever.prepare(question) for question in asked))
    again = await asyncio.gather(*(retriever.prepare(question) for question in asked))
    for one, other in zip(first, again, strict=True):
        assert one.coefficients is not None
        assert torch.equal(one.coefficients, other.coefficients)  # type: ignore[arg-type]
    ran = [text for _, texts in sentences.ran for text in texts]
    assert sorted(ran) == [f"What is number {number}?" for number in range(4)]
    assert {name.rpartition("_")[0] or name for name, _ in sentences.ran} <= {"sentences", "retrieval"}
    assert all(prepared.routing_seconds > 0 for prepared in (*first, *again))


async def test_a_broken_encoder_is_told_to_the_one_who_asked(
    loaded_tiny_base: Base, retriever: Retriever, sentences: NotingEncoder
):
    (question,) = questions(loaded_tiny_base, 1)
    sentences.failing = True
    with pytest.raises(RuntimeError, match="broken"):
        await retriever.prepare(question)
    sentences.failing = False
    assert (await retriever.prepare(question)).coefficients is not None


async def test_the_line_is_as_long_as_it_says(
    loaded_tiny_base: Base, sentences: NotingEncoder, monkeypatch: pytest.MonkeyPatch
):
    base = loaded_tiny_base
    retriever = Retriever(base, Renderer(base), VisionEncoder(base), sentences, max_waiting=2)
    begun, go_on = threading.Event(), threading.Event()
    answer = retriever._answer

    def slow(batch: list[tuple[Question, Future[Prepared]]]) -> None:
        begun.set()
        assert go_on.wait(30)
        answer(batch)

    monkeypatch.setattr(retriever, "_answer", slow)
    asked = questions(base, 4)
    under_way = asyncio.ensure_future(retriever.prepare(asked[0]))
    await asyncio.to_thread(begun.wait, 30)
    waiting = [asyncio.ensure_future(retriever.prepare(question)) for question in asked[1:3]]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusy, match="2 requests are waiting"):
        await retriever.prepare(asked[3])
    go_on.set()
    done = await asyncio.gather(under_way, *waiting)
    assert all(prepared.coefficients is not None for prepared in done)
    retriever.close()


async def test_what_waited_is_answered_and_what_comes_after_the_end_is_refused(
    loaded_tiny_base: Base, retriever: Retriever
):
    first, late = questions(loaded_tiny_base, 2)
    waiting = asyncio.ensure_future(retriever.prepare(first))
    await asyncio.sleep(0)
    retriever.close()
    assert (await waiting).coefficients is not None
    with pytest.raises(UnavailableError, match="stopping"):
        await retriever.prepare(late)


async def test_a_line_without_places_still_takes_one_at_a_time(
    loaded_tiny_base: Base, sentences: NotingEncoder
):
    base = loaded_tiny_base
    retriever = Retriever(base, Renderer(base), VisionEncoder(base), sentences, max_waiting=0)
    (question,) = questions(base, 1)
    assert (await retriever.prepare(question)).coefficients is not None
    retriever.close()
