"""Measure serving beside training on one machine, and training beside serving.

    python -m benchmarks.beside [--rate 1] [--seconds 20] [--rounds 4] [--json OUT]

A gateway process and a real ``trainer_worker`` process run as under ``strata up`` (half of the cores for the
gateway, a lower priority for the worker). The worker learns one long job. Each round has three phases in an
order that changes: serving alone (the worker is held by SIGSTOP), both, training alone (nobody asks). The
load is the same in both serving phases of a round: the same questions at the same moments.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.beside.worker import Lesson, WorkerProcess, steps_per_second
from benchmarks.live.arguments import live_parser
from benchmarks.live.figures import Spread, percentile, poisson_moments, ratios
from benchmarks.live.load import Answer, at_most, open_loop
from benchmarks.live.process import GatewayProcess
from benchmarks.live.questions import QUESTIONS, Asked, mixed
from benchmarks.live.quiet import OtherLoad, seconds_of
from benchmarks.program import run_program, write_figures
from benchmarks.telling import Teller, told

P99_GOAL, SPEED_GOAL = 1.2, 0.7
_SETTLE_SECONDS = 1.0
Kind = Literal["serving", "both", "training"]
_KINDS: tuple[Kind, ...] = ("serving", "both", "training")


@dataclass(slots=True)
class Phase:
    """Hold what one phase measured.

    Attributes:
        training: steps a second, NaN where nothing was learned.
        others: cores that other programs of the machine used meanwhile.
        gateway: cores that the gateway used.
    """

    kind: Kind
    number: int
    began: float
    ended: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    training: float = math.nan
    others: float = math.nan
    gateway: float = math.nan

    def gap(self, share: float) -> float:
        """Return a percentile of the gaps between tokens, in seconds."""
        return percentile([gap for answer in self.answers for gap in answer.gaps], share)

    def first(self, share: float) -> float:
        """Return a percentile of the time to the first token, in seconds."""
        return percentile([a.first_seconds for a in self.answers if a.moments], share)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; no request may fail."""
    arguments = _arguments(argv)
    return run_program(lambda folder: _report(arguments, folder))


def _report(arguments: argparse.Namespace, folder: Path) -> bool:
    phases = _measure(arguments, folder)
    failures = [answer.failure for phase in phases for answer in phase.answers if answer.failure]
    print(as_text(phases, failures))
    record = {"settings": vars(arguments), "failures": failures, "phases": [asdict(one) for one in phases]}
    write_figures(arguments.json, record)
    return not failures


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = live_parser("benchmarks.beside", "Measure serving beside training.")
    parser.add_argument("--worker-threads", type=int, default=0, help="threads of each replica; 0: all cores")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a phase")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of three phases")
    parser.add_argument("--pictures", type=int, default=24, help="pictures that are asked about")
    parser.add_argument("--taught", type=int, default=160, help="pictures that are learned")
    parser.add_argument("--batch-size", type=int, default=16, help="questions of a training step")
    return parser.parse_args(argv)


def _measure(arguments: argparse.Namespace, folder: Path) -> list[Phase]:
    flags = {"base": arguments.base, "device": arguments.device}
    served = {"engine": arguments.engine, "threads": arguments.threads, "max_waiting": 1024}
    taught = {"threads": arguments.worker_threads, "retention_questions": 0}
    with told(3 * arguments.rounds + 2) as teller, ExitStack() as stack:
        teller.at("starting the gateway")
        gateway = stack.enter_context(GatewayProcess(folder, {**flags, **served}))
        worker = stack.enter_context(WorkerProcess(folder, {**flags, **taught}))
        teller.step()
        teller.at("beginning to train")
        lesson = Lesson(gateway.url, worker)
        lesson.begin(arguments.taught, arguments.batch_size)
        stack.callback(lesson.end)
        stack.callback(worker.resume)
        _warm(gateway.url, arguments)
        teller.step()
        return [
            _phase(kind, number, arguments, gateway, worker, lesson, teller)
            for number in range(arguments.rounds)
            for kind in order_of(number)
        ]


def order_of(number: int) -> tuple[Kind, ...]:
    """Return the order of a round's phases: each kind comes first, second and last in turn."""
    turn = number % len(_KINDS)
    return _KINDS[turn:] + _KINDS[:turn]


def _warm(url: str, arguments: argparse.Namespace) -> None:
    asked = [Asked(number, QUESTIONS[number % len(QUESTIONS)], 2) for number in range(arguments.pictures)]
    asyncio.run(at_most(url, asked, ["strata"] * len(asked), 4))


def _phase(
    kind: Kind,
    number: int,
    arguments: argparse.Namespace,
    gateway: GatewayProcess,
    worker: WorkerProcess,
    lesson: Lesson,
    teller: Teller,
) -> Phase:
    teller.at(f"round {number + 1} of {arguments.rounds}, {kind}")
    worker.check()
    if kind == "serving":
        worker.hold()
    else:
        worker.resume()
    time.sleep(_SETTLE_SECONDS)
    watch = OtherLoad(lambda: (os.getpid(), gateway.pid, worker.pid))
    phase = Phase(kind, number, time.time())
    used = seconds_of([gateway.pid])
    if kind == "training":
        time.sleep(arguments.seconds)
    else:
        moments = poisson_moments(arguments.rate, arguments.seconds, number)
        questions = mixed(len(moments), arguments.pictures, arguments.max_tokens, number)
        phase.answers = asyncio.run(open_loop(gateway.url, moments, questions, "strata"))
    phase.ended = time.time()
    phase.others = watch.cores()
    phase.gateway = (seconds_of([gateway.pid]) - used) / (phase.ended - phase.began)
    if kind != "serving":
        phase.training = steps_per_second(lesson.steps(), phase.began, phase.ended)
    teller.step()
    return phase


def as_text(phases: Sequence[Phase], failures: Sequence[str]) -> str:
    """Lay the figures and their ratios out as Markdown; a ratio is of the two phases of one round."""
    by_kind = {kind: sorted((p for p in phases if p.kind == kind), key=lambda p: p.number) for kind in _KINDS}
    lines = ["| | alone | beside the other | ratio of rounds | goal |", "|---|---|---|---|---|"]
    rows: tuple[tuple[str, Any, float, str], ...] = (
        ("p50 gap (ms)", lambda p: p.gap(0.5), 1000, ""),
        ("p99 gap (ms)", lambda p: p.gap(0.99), 1000, f"at most {P99_GOAL}"),
        ("p50 first token (ms)", lambda p: p.first(0.5), 1000, ""),
        ("training, steps/s", lambda p: p.training, 1, f"at least {SPEED_GOAL}"),
    )
    for name, figure, scale, goal in rows:
        alone = [figure(phase) for phase in by_kind["training" if name.startswith("training") else "serving"]]
        both = [figure(phase) for phase in by_kind["both"]]
        digits = 0 if scale > 1 else 2
        cells = [Spread.of(values).shown(scale, digits) for values in (alone, both)]
        lines.append(
            f"| {name} | {cells[0]} | {cells[1]} | {Spread.of(ratios(both, alone)).shown()} | {goal} |"
        )
    asked = sum(len(phase.answers) for phase in phases)
    others = Spread.of(phase.others for phase in phases).shown()
    lines += ["", f"{asked} requests, {len(failures)} failed; other programs used {others} cores meanwhile"]
    cores = len(os.sched_getaffinity(0))
    served = Spread.of(phase.gateway for phase in by_kind["both"])
    lines.append(
        f"the gateway used {served.shown()} of {cores} cores beside training, which leaves "
        f"{1 - served.median / cores:.2f} of them"
    )
    return "\n".join([*lines, *(f"failure: {text}" for text in failures[:20])])


if __name__ == "__main__":
    sys.exit(main())
