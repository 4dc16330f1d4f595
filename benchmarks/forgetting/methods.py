"""Every method that is compared: Strata, Strata with one part taken away, and the baselines.

A baseline is the same increments, learned by the same loop, but always all of them: an ordinary LoRA. What
differs is only what it learns from, what its average does, and who tells it the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

REPLAYED_SHARE: Final = 0.05

Kind = Literal["strata", "base", "sequential", "oracle", "joint"]


@dataclass(frozen=True, slots=True)
class Method:
    """One way to learn a stream.

    Attributes:
        name: what the tables call it.
        kind: ``strata`` goes through queue, worker and gate; ``sequential`` is one LoRA trained on task after
            task; ``oracle`` a LoRA of its own for each task, told which; ``joint`` one on everything at once.
        about: what it is, in words.
        settings: settings of the worker that differ from its defaults.
        hyperparameters: those of its jobs that differ from the benchmark's.
        replayed_share: of each earlier task's training examples, learned again beside every new task.
    """

    name: str
    kind: Kind
    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    replayed_share: float = 0.0


_OFF: Final = {"ema_mode": "off"}
_ONE: Final = {"branch": False}
METHODS: Final = {
    method.name: method
    for method in (
        Method("strata", "strata", "as shipped"),
        Method("zero-shot", "base", "the untouched base"),
        Method("sequential", "sequential", "one LoRA, task after task", hyperparameters=_OFF),
        Method("sequential-ema", "sequential", "the same, EMA(0.99)", hyperparameters={"ema_mode": "fixed"}),
        Method(
            "sequential-released",
            "sequential",
            "the same, dynamic EMA as released",
            hyperparameters={"ema_mode": "released"},
        ),
        Method(
            "replay",
            "sequential",
            "one LoRA, 5 % of old data again",
            hyperparameters=_OFF,
            replayed_share=REPLAYED_SHARE,
        ),
        Method("oracle", "oracle", "a frozen LoRA for each task, told which", hyperparameters=_OFF),
        Method("joint", "joint", "one LoRA on all data at once", hyperparameters=_OFF),
        Method("no-context", "strata", "without contextual increments", settings={"contextual": False}),
        Method("text-routing", "strata", "routed by the text alone", settings={"routing": "text"}),
        Method("ema-released", "strata", "EMA as released", hyperparameters={"ema_mode": "released"}),
        Method("ema-fixed", "strata", "EMA(0.99)", hyperparameters={"ema_mode": "fixed"}),
        Method("ema-off", "strata", "without EMA", hyperparameters=_OFF),
        Method("no-branch", "strata", "a known task's own increments move", settings=_ONE),
        Method("no-branch-released", "strata", "the same, EMA as released", _ONE, {"ema_mode": "released"}),
        Method("no-branch-fixed", "strata", "the same, EMA(0.99)", _ONE, {"ema_mode": "fixed"}),
        Method("no-branch-off", "strata", "the same, without EMA: plain retraining", _ONE, _OFF),
        Method("m1", "strata", "M = 1 of S = 4", settings={"top_m": 1}),
        Method("s8", "strata", "M = 4 of S = 8", hyperparameters={"rows_per_task": 8}),
        Method("r2", "strata", "rank 2", settings={"rank": 2}),
        Method("q-and-o", "strata", "q_proj and o_proj", settings={"targets": "q_proj,o_proj"}),
        Method("share", "strata", "other tasks' rows may move", hyperparameters={"share": True}),
    )
}
BASELINES: Final = (
    *("strata", "zero-shot", "sequential", "sequential-ema", "sequential-released"),
    *("replay", "oracle", "joint"),
)
COMING_BACK: Final = ("strata", "no-branch", "no-branch-released", "no-branch-fixed", "no-branch-off")
"""What the revisiting stream compares; without a task that comes back they are all the same."""
ABLATIONS: Final = tuple(name for name in METHODS if name not in (*BASELINES, *COMING_BACK))
_FEW: Final = ("joint",)
POINTLESS: Final = {
    "revisit": ("oracle", "joint"),
    **dict.fromkeys(("few-16", "few-64", "few-256"), _FEW),
}
"""Methods that a stream says nothing about: small batches in turn are neither tasks nor shares of one run."""
