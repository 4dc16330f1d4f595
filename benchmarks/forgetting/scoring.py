"""Score a state on the test questions of a stream, with the coefficients that serving would use."""

from __future__ import annotations

from collections.abc import Sequence

from adapter_store.state import AdapterState, RoutingSettings
from benchmarks.forgetting.streams import StreamTask
from trainer_worker.evaluate import Score, Served, leak_ratio, score_base, score_state
from trainer_worker.features import Encoded
from trainer_worker.prefixes import PrefixStore
from trainer_worker.workshop import Workshop


class Scorer:
    """Hold a stream's encoded test questions, and what lies behind their pictures, for all methods."""

    def __init__(self, shop: Workshop, tasks: Sequence[StreamTask]) -> None:
        self._shop = shop
        self._tasks = {task.name: task for task in tasks}
        self._encoded: dict[tuple[str, str], Encoded] = {}
        self._stores: dict[str, PrefixStore] = {}
        self._base: dict[str, Score] = {}

    def score(self, served: Served) -> dict[str, float]:
        """Return the accuracy of every task of the stream, learned or not."""
        return {task: self.score_task(served, task) for task in self._tasks}

    def score_task(self, served: Served, task: str) -> float:
        """Return the accuracy of one task."""
        encoded = self._of(task, served.state.routing)
        score = score_state(
            self._shop.replicas, served, encoded, self._store(task, encoded), base=self._base_score(task)
        )
        return score.accuracy or 0.0

    def base(self) -> dict[str, float]:
        """Return the untouched base's accuracy of every task."""
        return {task: self._base_score(task).accuracy or 0.0 for task in self._tasks}

    def leak(self, state: AdapterState) -> dict[str, float]:
        """Return the routing leak of every task that the state knows."""
        return {
            name: leak_ratio(state, self._of(name, state.routing).queries, task.teaches)
            for name, task in self._tasks.items()
            if task.teaches in state.tasks
        }

    def _base_score(self, task: str) -> Score:
        if task not in self._base:
            encoded = self._of(task, RoutingSettings("text"))
            self._base[task] = score_base(self._shop.replicas, encoded, self._store(task, encoded))
        return self._base[task]

    def _of(self, task: str, routing: RoutingSettings) -> Encoded:
        key = (task, routing.mode)
        if key not in self._encoded:
            test = self._tasks[task].test
            self._encoded[key] = self._shop.featurizer.encode(test.examples, test.image, routing)
        return self._encoded[key]

    def _store(self, task: str, encoded: Encoded) -> PrefixStore:
        if task not in self._stores:
            budget = self._shop.prefix_cache_bytes // len(self._tasks)
            self._stores[task] = PrefixStore(
                encoded.prefixes, encoded.pictures, budget_bytes=budget, half=False
            )
        return self._stores[task]
