"""From a request to what the engine takes: token ids, image features and the coefficient vector c.

One thread does the tensor work, off the event loop. It takes every question that waits at once, so pictures
and texts of concurrent requests are encoded in one batch. Texts nobody asked before are encoded beside the
pictures, in a second thread: what routing needs is there when the tower is done.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from adapter_store.encoder import SentenceEncoder
from adapter_store.errors import EngineBusy, UnavailableError
from adapter_store.queries import QueryEncoder
from adapter_store.rendering import Message, RenderedPrompt, Renderer
from adapter_store.routing import answering, contextual
from adapter_store.served import ServedPool
from adapter_store.state import AdapterState
from adapter_store.vision import ImageFeatures, VisionEncoder

if TYPE_CHECKING:
    from adapter_store.base.load import Base

_MAX_BATCH = 32


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the turns, their pictures in order, and the state to route with (None: the base).

    ``pool`` is what the engine holds of that state; None stands for the state itself. ``features`` are those
    of the pictures if they were encoded before; then ``images`` is not looked at.
    """

    messages: tuple[Message, ...]
    images: tuple[Image.Image, ...]
    state: AdapterState | None
    pool: ServedPool | None = None
    features: tuple[ImageFeatures, ...] | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the engine needs for one question.

    Attributes:
        input_ids: every image placeholder expanded.
        images: features in the order of their placeholders.
        gate_start: index of the first adapted token.
        coefficients: vector c of eq. 5, ``[N]`` float32, or None for the base.
        task: the task whose rows carry most of c; None when c is zero or there is no state.
        query: what the coefficients were found with, ``[q]``; None for the base.
        served: the same for the pool that the engine holds, ``[N']``; for a small pool equal to c.
        routing_seconds: how long finding the coefficients took once the pictures were encoded, together with
            all that were found at once.
    """

    input_ids: tuple[int, ...]
    images: tuple[ImageFeatures, ...]
    gate_start: int
    coefficients: torch.Tensor | None
    task: str | None
    query: torch.Tensor | None
    served: torch.Tensor | None = None
    routing_seconds: float = 0.0


class Retriever:
    """Prepare questions in one background thread, many at a time."""

    def __init__(
        self,
        base: Base,
        renderer: Renderer,
        vision: VisionEncoder,
        sentences: SentenceEncoder,
        max_waiting: int = 256,
    ) -> None:
        self._max_waiting = max(1, max_waiting)  # whoever comes is here for a moment
        self._renderer = renderer
        self._vision = vision
        self._sentences = sentences
        self._queries = QueryEncoder(sentences, base.calibration)
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="sentences")
        self._waiting: queue.SimpleQueue[tuple[Question, Future[Prepared]] | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="retrieval", daemon=True)
        self._thread.start()

    async def prepare(self, question: Question) -> Prepared:
        """Return what the engine takes.

        Raises:
            InputError: the question cannot be rendered.
            EngineBusy: ``max_waiting`` questions wait already.
            UnavailableError: the retriever is closed.
        """
        future: Future[Prepared] = Future()
        with self._lock:  # nothing is put behind what ends the thread
            if self._closed:
                raise UnavailableError("the server is stopping; ask again in a moment")
            waiting = self._waiting.qsize()
            if waiting >= self._max_waiting:
                raise EngineBusy(f"{waiting} requests are waiting already; try again later")
            self._waiting.put((question, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread after what waits is done."""
        with self._lock:
            self._closed = True
            self._waiting.put(None)
        self._thread.join(timeout=10)
        self._beside.shutdown(wait=False)

    def _run(self) -> None:
        while True:
            batch, last = self._take()
            live = [(question, future) for question, future in batch if future.set_running_or_notify_cancel()]
            if live:
                self._answer(live)
            if last:
                return

    def _take(self) -> tuple[list[tuple[Question, Future[Prepared]]], bool]:
        """Wait for one question and take along those that wait already; True ends the thread."""
        batch = []
        item = self._waiting.get()
        while item is not None:
            batch.append(item)
            if len(batch) == _MAX_BATCH:
                return batch, False
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _answer(self, batch: list[tuple[Question, Future[Prepared]]]) -> None:
        rendered: list[tuple[Question, Future[Prepared], RenderedPrompt]] = []
        for question, future in batch:
            try:
                rendered.append((question, future, self._renderer.prompt(list(question.messages))))
            except Exception as error:  # noqa: BLE001  it belongs to the one who asked, whatever it is
                future.set_exception(error)
        try:
            prepared = self._prepare([(question, prompt) for question, _, prompt in rendered])
        except Exception as error:  # noqa: BLE001
            self._answer_singly(rendered, error)
            return
        for (_, future, _), result in zip(rendered, prepared, strict=True):
            future.set_result(result)

    def _answer_singly(
        self, rendered: list[tuple[Question, Future[Prepared], RenderedPrompt]], error: Exception
    ) -> None:
        """Keep one question's failure from its batch mates."""
        for question, future, prompt in rendered:
            try:
                if len(rendered) == 1:
                    raise error
                future.set_result(self._prepare([(question, prompt)])[0])
            except Exception as own:  # noqa: BLE001
                future.set_exception(own)

    def _prepare(self, items: Sequence[tuple[Question, RenderedPrompt]]) -> list[Prepared]:
        unseen = [question for question, _ in items if question.features is None]
        pictures = [image for question in unseen for image in question.images]
        texts = [prompt.query_text for question, prompt in items if question.state is not None]
        if pictures and texts:
            self._beside.submit(self._sentences.encode, texts)  # it remembers them; a fault comes up below
        features = iter(self._vision.encode(pictures)) if pictures else iter(())
        images = [
            tuple(next(features) for _ in question.images) if question.features is None else question.features
            for question, _ in items
        ]
        began = time.perf_counter()
        routed = self._coefficients(items, images)
        seconds = time.perf_counter() - began
        return [
            _prepared(question, prompt, images[index], *routed.get(index, (None, None, None)), seconds)
            for index, (question, prompt) in enumerate(items)
        ]

    def _coefficients(
        self, items: Sequence[tuple[Question, RenderedPrompt]], images: Sequence[tuple[ImageFeatures, ...]]
    ) -> dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Return c of eq. 5, ``[N]``, the query ``[q]`` and the served c, for each item with a state.

        The query's picture is the first one, as in training.
        """
        groups: dict[int, list[int]] = {}
        for index, (question, _) in enumerate(items):
            if question.state is not None:
                groups.setdefault(id(question.state), []).append(index)
        found: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        for indices in groups.values():
            question = items[indices[0]][0]
            state = question.state
            assert state is not None
            texts = [items[index][1].query_text for index in indices]
            pooled = [images[index][0].pooled if images[index] else None for index in indices]
            with torch.inference_mode():
                queries = self._queries.encode(texts, pooled, state.routing)
                a = answering(state, queries)
                rows = (a + contextual(state, a)).float().clone()
                served = rows if question.pool is None else question.pool.coefficients(a).float().clone()
            found.update(zip(indices, zip(rows, queries.clone(), served, strict=True), strict=True))
        return found


def _prepared(
    question: Question,
    prompt: RenderedPrompt,
    images: tuple[ImageFeatures, ...],
    vector: torch.Tensor | None,
    query: torch.Tensor | None,
    served: torch.Tensor | None,
    routing_seconds: float,
) -> Prepared:
    state = question.state
    span = "after_image" if state is None else state.span
    task = None if state is None or vector is None else heaviest_task(state, vector)
    ids, gate_start = tuple(prompt.input_ids), prompt.gate_start(span)
    return Prepared(ids, images, gate_start, vector, task, query, served, routing_seconds)


def heaviest_task(state: AdapterState, vector: torch.Tensor) -> str | None:
    """Return the task whose rows carry most of the coefficients, or None if all are zero.

    Args:
        state: its ``task_of`` says which row belongs to which task.
        vector: coefficients, ``[N]``.
    """
    if not len(state.tasks) or not bool(vector.any()):
        return None
    mass = torch.zeros(len(state.tasks)).index_add_(0, state.task_of.cpu(), vector.detach().cpu().float())
    return state.tasks[int(mass.argmax())]
