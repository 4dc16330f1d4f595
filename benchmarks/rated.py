"""Measure what a canary and feedback cost those who ask.

    python -m benchmarks.rated [--engine transformers] [--concurrent 16] [--repeats 5] [--json OUT]

One process runs the whole gateway, another asks. In turns, the same questions come plainly; then each with a
user, a canary answering its share, and a thumb for every answer; then the same with corrections, which are
kept on disk and queued as jobs. Shadow is off. The canary has the increments of ``stable``, so all loads have
the same tokens, and the ratio of tokens a second is the cost.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adapter_store.base.allocator import tune_allocator

tune_allocator()

import httpx  # noqa: E402

from adapter_store.versions import STABLE  # noqa: E402
from benchmarks.gateway.client import ClientProcess  # noqa: E402
from benchmarks.gateway.hosting import HostedGateway, settings_of  # noqa: E402
from benchmarks.live.arguments import live_parser  # noqa: E402
from benchmarks.live.figures import Spread, ratios  # noqa: E402
from benchmarks.live.questions import Asked, fresh  # noqa: E402
from benchmarks.live.quiet import OtherLoad  # noqa: E402
from benchmarks.program import NotMeasured, run_program, write_figures  # noqa: E402
from benchmarks.telling import Teller, told  # noqa: E402

COST_GOAL = 0.03
KINDS = ("plain", "canary and thumbs", "canary and corrections")
_WAVES = 3
"""Questions for each stream: feedback to the first ones comes while others are answered."""
_CANARY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """Hold what one load took; ``by_canary`` counts the answers of the canary."""

    kind: str
    tokens: int
    seconds: float
    answers: int
    by_canary: int

    @property
    def tokens_per_second(self) -> float:
        """Return the rate over all streams."""
        return self.tokens / self.seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = live_parser("benchmarks.rated", str(__doc__).splitlines()[0])
    parser.add_argument("--concurrent", type=int, default=16, help="streams at once")
    parser.add_argument("--repeats", type=int, default=5, help="loads of each kind")
    parser.add_argument("--seconds", type=float, default=600, help="no repeat begins later than this")
    parser.add_argument("--weight", type=float, default=0.1, help="the canary's share of the requests")
    arguments = parser.parse_args(argv)
    return run_program(lambda folder: _measure(arguments, folder))


def _measure(arguments: argparse.Namespace, folder: Path) -> None:
    kept = {"canary_max_slowdown": 0, "feedback_count": 32, "feedback_seconds": 0}
    with told(len(KINDS) * (arguments.repeats + 1) + 2) as teller:
        teller.at("making two versions")
        _publish(arguments, folder)
        teller.step()
        teller.at("starting the gateway")
        with (
            HostedGateway(folder / "home", {**settings_of(arguments), **kept}) as hosted,
            ClientProcess() as client,
        ):
            teller.step()
            watch = OtherLoad(lambda: (os.getpid(), client.pid))
            loads = _loads(arguments, hosted, client, teller)
            others = watch.cores()
    _print(loads)
    print(f"other programs used {others:.2f} cores meanwhile")
    record = {"settings": vars(arguments), "others": others, "loads": [asdict(load) for load in loads]}
    write_figures(arguments.json, record)


def _publish(arguments: argparse.Namespace, folder: Path) -> None:
    """Publish the same increments twice: v1 becomes ``stable``, v2 will be the canary."""
    from adapter_store.versions import VersionStore
    from benchmarks.live.versions import VersionMaker

    maker = VersionMaker.of(arguments)
    store = VersionStore(str(folder / "home" / "versions"), "strata")
    state = maker.state(1)
    for number in (1, 2):
        maker.prepare(state, folder / f"draft-{number}", f"job-{number}").publish(store)
    store.aliases.move(STABLE, "v1", reason="benchmark", actor="trainer")


def _loads(
    arguments: argparse.Namespace, hosted: HostedGateway, client: ClientProcess, teller: Teller
) -> list[Load]:
    """Run the kinds of load in an order that turns, on new pictures in every repeat; the first warms up."""
    loads: list[Load] = []
    count = _WAVES * arguments.concurrent
    until = time.monotonic() + arguments.seconds
    for repeat in range(arguments.repeats + 1):
        if loads and time.monotonic() > until:
            break
        questions = fresh(count, repeat, arguments.max_tokens)
        client.show(hosted.url, questions, arguments.concurrent)
        turn = repeat % len(KINDS)
        for kind in (*KINDS[turn:], *KINDS[:turn]):
            teller.at(f"repeat {repeat} of {arguments.repeats}, {kind}")
            load = _load(arguments, hosted, client, kind, questions)
            loads += [load] if repeat else []
            teller.step()
    return loads


def _load(
    arguments: argparse.Namespace,
    hosted: HostedGateway,
    client: ClientProcess,
    kind: str,
    questions: Sequence[Asked],
) -> Load:
    _set_canary(hosted.url, None if kind == "plain" else arguments.weight)
    hosted.forget()
    if kind == "plain":
        answers, seconds = client.ask(hosted.url, questions, arguments.concurrent)
    else:
        correct = kind == "canary and corrections"
        answers, seconds = client.ask_and_rate(hosted.url, questions, arguments.concurrent, correct=correct)
    by_canary = sum(answer.version == "v2" for answer in answers)
    return Load(kind, sum(answer.tokens for answer in answers), seconds, len(answers), by_canary)


def _set_canary(url: str, weight: float | None) -> None:
    """Give the canary a share of the requests, None for none, and wait until it is so."""
    with httpx.Client(base_url=f"{url}/v1/adapters/strata", timeout=60, trust_env=False) as http:
        body = {"version": "v2", **({} if weight is None else {"weight": weight})}
        http.put("/aliases/canary", json=body).raise_for_status()
        deadline = time.monotonic() + _CANARY_SECONDS
        while (http.get("/canary").json()["canary"] or {}).get("answering", False) != (weight is not None):
            if time.monotonic() > deadline:
                raise NotMeasured(f"the canary does not follow: {http.get('/canary').text}")
            time.sleep(0.05)


def _print(loads: Sequence[Load]) -> None:
    rates = {kind: [load.tokens_per_second for load in loads if load.kind == kind] for kind in KINDS}
    print("| Load | tokens/s | answers by the canary | cost (goal 3 %) |")
    print("|---|---|---|---|")
    for kind in KINDS:
        of_kind = [load for load in loads if load.kind == kind]
        share = sum(load.by_canary for load in of_kind) / sum(load.answers for load in of_kind)
        cost = Spread.of(rate - 1 for rate in ratios(rates["plain"], rates[kind]))
        shown = "" if kind == "plain" else cost.shown(100, 1, " %")
        print(f"| {kind} | {Spread.of(rates[kind]).shown(digits=1)} | {100 * share:.0f} % | {shown} |")


if __name__ == "__main__":
    sys.exit(main())
