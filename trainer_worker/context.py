"""Choose the earlier tasks that a new one starts from: its contextual logits before the first step.

From a start of one half for everybody, a task begins on the sum of half of all earlier ones, however many
there are and whether they help or not. Here the base is asked a few of the new questions with what each
earlier task uses switched on, and only those that make the answers likelier are in it from the first step on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from adapter_store.state import AdapterState
from trainer_worker.evaluate import Served, score_samples
from trainer_worker.features import Encoded
from trainer_worker.prefixes import PrefixStore
from trainer_worker.replicas import Replicas

NO_CONTEXT_LOGIT = -30.0
"""Its sigmoid is 1e-13: earlier tasks have no part in a new one."""
SAMPLES = 48
LEAST_GAIN = 0.02
"""A task that lowers the loss by less than this share does not help."""
MOST_HELPERS = 4
HELPS, DOES_NOT_HELP = 2.0, -4.0
"""Logits: weights of 0.88 and 0.02, from which gradients still move them."""


def start_context(
    replicas: Replicas,
    state: AdapterState,
    task: str,
    encoded: Encoded,
    store: PrefixStore,
    order: Sequence[int],
    check: Callable[[], None],
) -> AdapterState:
    """Return the state with the logits of a new ``task`` (up projections still zero) where it should start.

    Args:
        replicas: the frozen language model.
        state: knows the task, the last one.
        task: its name.
        encoded: its samples.
        store: what lies behind their pictures.
        order: training samples, shuffled; the first ``SAMPLES`` are asked.
        check: may raise to interrupt.
    """
    index = state.task_index(task)
    asked = list(order[:SAMPLES])
    served = Served.of(state, replicas.increments)
    whole = state.span == "all"

    def loss(tasks: Sequence[int]) -> float:
        coefficients = state.usage[list(tasks)].sum(dim=0).expand(len(encoded), -1)
        return score_samples(
            replicas,
            encoded.samples,
            store,
            asked,
            served.activate(coefficients),
            cached=not whole,
            alike=[0] * len(encoded) if whole else None,
            check=check,
        ).loss

    best = alone = loss(())
    single = {earlier: loss((earlier,)) for earlier in range(index)}
    helpers: list[int] = []
    for earlier, found in sorted(single.items(), key=lambda pair: pair[1])[:MOST_HELPERS]:
        if found >= alone * (1 - LEAST_GAIN):
            break
        together = found if not helpers else loss((*helpers, earlier))
        if together < best * (1 - LEAST_GAIN):
            helpers.append(earlier)
            best = together
    logits = torch.full((index,), DOES_NOT_HELP)
    logits[helpers] = HELPS
    return state.with_context(task, logits)
