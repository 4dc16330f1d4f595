"""Measure what swaps of versions cost those who ask meanwhile.

    python -m benchmarks.swap [--engine transformers] [--json OUT] [--plots DIR] [--rate 1] [--seconds 30]

A gateway process answers a steady open-loop load over HTTP (Poisson arrivals, pictures from a pool, mixed
questions, streaming). In every round the same requests come at the same moments twice: with and without
versions being published and promoted meanwhile, in alternating order. Of all versions one is rolled back and
one has a probe that fails. Versions of 7B size hold as many increments as it takes to reach the 33.6 MB of
one task for a model of 32 layers of width 4096 (4 increments of rank 8 on ``o_proj``, float32 as on disk).

Flip: the time between the last look at the served version that got the old one and the first that got the new
one, looking every 20 ms. Publish to answer: from the beginning of the publication to the first token by the
new version, asked for as soon as a look got it. Afterwards every greedy answer is compared with what its
version answers when nobody else asks.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapter_store.base.allocator import tune_allocator
from adapter_store.versions import VersionStore
from benchmarks.live.arguments import live_parser
from benchmarks.live.process import GatewayProcess
from benchmarks.program import run_program, write_figures
from benchmarks.swap.checking import find_changed
from benchmarks.swap.phases import Load, Phase, PhaseKind, run_phase, warm
from benchmarks.swap.plots import draw_all
from benchmarks.swap.report import as_record, as_text, failures_of, report_of
from benchmarks.swap.swapping import Kind, Swapper
from benchmarks.telling import Teller, told

SIZES = ("embedded", "7B")
SIZE_OF_7B = 4 * 8 * 2 * 4096 * 32 * 4
"""Bytes of one task for a 7B model: 4 increments of rank 8 on ``o_proj``, 4096 wide, 32 layers, float32."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; no request may fail and no answer change."""
    arguments = _arguments(argv)
    return run_program(lambda folder: _measure(arguments, folder))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = live_parser("benchmarks.swap", "Measure swaps under load.")
    parser.add_argument("--banks", type=int, default=2, help="versions resident at once")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a phase")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of a steady and a swapping phase")
    parser.add_argument("--versions", type=int, default=20, help="versions of each size, over all rounds")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="sizes of versions")
    parser.add_argument("--bytes", type=int, default=SIZE_OF_7B, help="size of a version of 7B size")
    parser.add_argument("--pictures", type=int, default=24, help="size of the pool")
    parser.add_argument("--plots", type=Path, help="folder for the plots")
    return parser.parse_args(argv)


def plan_kinds(versions: int) -> list[Kind]:
    """Return what happens to each version: the third is rolled back, the sixth has a false probe."""
    kinds: list[Kind] = ["promoted"] * versions
    if versions > 2:
        kinds[2] = "rolled back"
    if versions > 5:
        kinds[5] = "refused"
    return kinds


def plan_phases(sizes: Sequence[str], rounds: int) -> list[tuple[str, PhaseKind, int]]:
    """Return size, kind and round of every phase; which kind is first changes with the round."""
    orders: tuple[tuple[PhaseKind, PhaseKind], ...] = (("steady", "swaps"), ("swaps", "steady"))
    return [(size, kind, number) for size in sizes for number in range(rounds) for kind in orders[number % 2]]


def _measure(arguments: argparse.Namespace, folder: Path) -> bool:
    load = Load(arguments.rate, arguments.seconds, arguments.pictures, arguments.max_tokens)
    planned = plan_phases(arguments.sizes, arguments.rounds)
    requests = sum(len(load.of(number)[0]) for _, _, number in planned)
    made = len(arguments.sizes) * (arguments.versions + 1)
    with told(2 * made + 2 * requests) as teller, ExitStack() as stack:
        drafts = _prepare(arguments, folder / "drafts", teller)
        teller.at("starting the gateway")
        flags = {"engine": arguments.engine, "base": arguments.base, "device": arguments.device}
        flags |= {"threads": arguments.threads, "max_waiting": 1024, "banks": arguments.banks}
        flags |= {"pool_rank": 1024}  # in graphs: room for versions of 7B size in the embedded base's shapes
        gateway = stack.enter_context(GatewayProcess(folder / "home", flags))
        store = VersionStore(str(folder / "home" / "versions"), "strata")
        phases = asyncio.run(_run(gateway, store, load, planned, drafts, teller))
        answers = [answer for phase in phases for answer in phase.answers if not answer.failure]
        teller.expect(len(answers) - requests)
        teller.at("asking everything again, quietly")
        changed = asyncio.run(find_changed(gateway.url, answers, teller))
    failures = failures_of(phases)
    reports = [report_of(phases, size) for size in arguments.sizes]
    print(as_text(reports, phases, changed, failures))
    settings = {**vars(arguments), **asdict(load)}
    write_figures(arguments.json, as_record(reports, phases, changed, failures, settings))
    if arguments.plots:
        draw_all(arguments.plots, phases)
    return not failures and all(item.near_tie for item in changed)


def _prepare(arguments: argparse.Namespace, folder: Path, teller: Teller) -> dict[str, list[Any]]:
    """Write all versions' files beforehand: computing their probes would disturb what is measured."""
    from benchmarks.live.versions import ROWS, VersionMaker

    maker = VersionMaker.of(arguments)
    drafts: dict[str, list[Any]] = {}
    for number, size in enumerate(arguments.sizes):
        rows = maker.rows_for(arguments.bytes) if size == "7B" else ROWS
        kinds: list[Kind] = ["promoted", *plan_kinds(arguments.versions)]
        drafts[size] = []
        for place, kind in enumerate(kinds):
            teller.at(f"making version {place + 1} of {len(kinds)}, {size}")
            state = maker.state(1000 * number + place, rows)
            job = f"job-{size}-{place}"
            drafts[size].append((maker.prepare(state, folder / job, job, honest=kind != "refused"), kind))
            teller.step()
    return drafts


async def _run(
    gateway: GatewayProcess,
    store: VersionStore,
    load: Load,
    planned: Sequence[tuple[str, PhaseKind, int]],
    drafts: dict[str, list[Any]],
    teller: Teller,
) -> list[Phase]:
    """Run all phases; before the first phase of a size, its first version is brought to serve."""
    swapper = Swapper(gateway, store)
    phases: list[Phase] = []
    waiting: dict[str, list[Any]] = {}
    rounds = 1 + max(number for _, _, number in planned)
    for size, kind, number in planned:
        if size not in waiting:
            waiting[size] = drafts[size][1:]
            await swapper.swap(*drafts[size][0])
            await warm(gateway, load)
            teller.step()
        phase = Phase(size, kind, number, 0.0)
        own = share_of(waiting[size], number, rounds) if kind == "swaps" else []
        teller.at(f"{size} versions, round {number + 1} of {rounds}, {kind}")
        await run_phase(gateway, swapper, phase, load, own, teller)
        phases.append(phase)
    return phases


def share_of(items: Sequence[Any], number: int, parts: int) -> list[Any]:
    """Return the ``number``-th of ``parts`` nearly equal runs of ``items``."""
    return list(items[number * len(items) // parts : (number + 1) * len(items) // parts])


if __name__ == "__main__":
    tune_allocator()
    sys.exit(main())
