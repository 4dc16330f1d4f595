"""Let several threads run the frozen model at once: copies of its modules that share every weight.

The products of a step are small, so one core each for two halves of a batch is faster than two cores for each
product. Increments act through the modules; that is why every thread needs modules of its own.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

from adapter_store.increments import Increments
from trainer_worker.language import LanguageModel

MOST = 4
"""More replicas than this would get too few rows of a batch each."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Replica:
    """The frozen language model and the handle by which increments act on it; for one thread at a time."""

    language: LanguageModel
    increments: Increments

    def copy(self) -> Replica:
        """Return new modules over the same weights."""
        parts = (self.language.backbone, self.language.embedding, self.language.head)
        shared = {id(t): t for part in parts for t in (*part.parameters(), *part.buffers())}
        return Replica(*copy.deepcopy((self.language, self.increments), shared))


class Replicas:
    """Spread work over ``count`` replicas of a model, the given one among them."""

    def __init__(self, language: LanguageModel, increments: Increments, count: int = 1) -> None:
        self.first = Replica(language, increments)
        self.count = count
        self._free: SimpleQueue[Replica] = SimpleQueue()
        for number in range(count):
            self._free.put(self.first if number == 0 else self.first.copy())
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="replica")

    @property
    def language(self) -> LanguageModel:
        """Return the first replica's language model."""
        return self.first.language

    @property
    def increments(self) -> Increments:
        """Return the first replica's increments."""
        return self.first.increments

    def map(
        self,
        work: Callable[[Replica, ItemT], ResultT],
        items: Sequence[ItemT],
        *,
        check: Callable[[], None] = lambda: None,
    ) -> list[ResultT]:
        """Return ``work(replica, item)`` of all items, in their order.

        Args:
            work: runs on one thread of several; grad mode is each thread's own.
            items: what to work on.
            check: called before every result is waited for; may raise to interrupt. Whatever is raised,
                no replica is in use any more when it leaves this function.
        """
        futures = [self._threads.submit(self._with_replica, work, item) for item in items]
        try:
            return [_result(future, check) for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            wait(futures)
            raise

    def _with_replica(self, work: Callable[[Replica, ItemT], ResultT], item: ItemT) -> ResultT:
        replica = self._free.get()
        try:
            return work(replica, item)
        finally:
            self._free.put(replica)


def _result(future: Future[ResultT], check: Callable[[], None]) -> ResultT:
    check()
    return future.result()


def share_cores(threads: int, *, on_cpu: bool) -> tuple[int, int]:
    """Return how many replicas to make and how many threads each computes with.

    Args:
        threads: threads for each replica; 0: as many as leave no core idle.
        on_cpu: whether the model runs on the CPU; an accelerator needs one replica.
    """
    cores = len(os.sched_getaffinity(0))
    if not on_cpu:
        return 1, threads or cores
    replicas = min(MOST, max(1, cores // (threads or 1)))
    return replicas, threads or max(1, cores // replicas)
