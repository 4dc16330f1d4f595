"""Measure what the gateway costs beside its engine.

    python -m benchmarks.gateway [--engine transformers] [--concurrent 64] [--repeats 5] [--json OUT]

One process runs the whole gateway. In turns, the same questions come as concurrent streams over HTTP from a
process of their own, and directly to retriever and engine inside; the ratio of tokens a second is what HTTP
costs. Then questions that were never asked before tell the share of routing (sentence encoder and
coefficients) in the time to the first token, from the gateway's own series.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adapter_store.base.allocator import tune_allocator

tune_allocator()

from adapter_store.versions import STABLE  # noqa: E402
from benchmarks.gateway.client import ClientProcess  # noqa: E402
from benchmarks.gateway.hosting import HostedGateway, LoadResult, settings_of  # noqa: E402
from benchmarks.gateway.routing import RoutingParts, routing_parts  # noqa: E402
from benchmarks.live.arguments import live_parser  # noqa: E402
from benchmarks.live.figures import Spread, ratios  # noqa: E402
from benchmarks.live.questions import Asked, fresh  # noqa: E402
from benchmarks.live.quiet import OtherLoad  # noqa: E402
from benchmarks.program import run_program, write_figures  # noqa: E402
from benchmarks.telling import Teller, told  # noqa: E402

OVERHEAD_GOAL, ROUTING_GOAL = 0.05, 0.02
_SINGLES = 12


@dataclass(frozen=True, slots=True)
class RoutingShare:
    """Hold the share of routing in the time to the first token, and the mean seconds of both."""

    load: str
    routing_seconds: float
    first_token_seconds: float

    @property
    def share(self) -> float:
        """Return the ratio; NaN without answers."""
        return self.routing_seconds / self.first_token_seconds if self.first_token_seconds else math.nan


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    arguments = _arguments(argv)
    return run_program(lambda folder: _measure(arguments, folder))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = live_parser("benchmarks.gateway", "Measure the gateway.")
    parser.add_argument("--concurrent", type=int, default=64, help="streams at once")
    parser.add_argument("--repeats", type=int, default=5, help="loads over HTTP and directly, each")
    return parser.parse_args(argv)


def _measure(arguments: argparse.Namespace, folder: Path) -> None:
    with told(2 * arguments.repeats + 4) as teller:
        teller.at("making a version")
        parts = _publish(arguments, folder)
        teller.step()
        teller.at("starting the gateway")
        with HostedGateway(folder / "home", settings_of(arguments)) as hosted, ClientProcess() as client:
            watch = OtherLoad(lambda: (os.getpid(), client.pid))
            http, direct = _loads(arguments, hosted, client, teller)
            others = watch.cores()
            shares = _routing_shares(arguments, hosted, client, teller)
    _print(http, direct, shares, parts)
    print(f"other programs used {others:.2f} cores meanwhile")
    record = {
        "settings": vars(arguments),
        "others": others,
        "http": [asdict(load) for load in http],
        "direct": [asdict(load) for load in direct],
        "routing": [{**asdict(share), "share": share.share} for share in shares],
        "routing_parts": [asdict(part) for part in parts],
    }
    write_figures(arguments.json, record)


def _publish(arguments: argparse.Namespace, folder: Path) -> list[RoutingParts]:
    """Publish a version that acts, as ``stable``, before the gateway looks; time routing over it."""
    from adapter_store.versions import VersionStore
    from benchmarks.live.versions import VersionMaker

    maker = VersionMaker.of(arguments)
    state = maker.state(1)
    store = VersionStore(str(folder / "home" / "versions"), "strata")
    manifest = maker.prepare(state, folder / "draft", "job-1").publish(store)
    store.aliases.move(STABLE, manifest.version, reason="benchmark", actor="trainer")
    encoder = maker.base.sentence_encoder
    return routing_parts(encoder, state) if encoder else []


def _loads(
    arguments: argparse.Namespace, hosted: HostedGateway, client: ClientProcess, teller: Teller
) -> tuple[list[LoadResult], list[LoadResult]]:
    """Run loads over HTTP and directly in alternating order, on new pictures in every repeat."""
    http: list[LoadResult] = []
    direct: list[LoadResult] = []
    count = arguments.concurrent
    teller.at("warming up")
    over_http(hosted, client, fresh(count, 0, arguments.max_tokens))
    teller.step()
    for repeat in range(arguments.repeats):
        questions = fresh(count, repeat + 1, arguments.max_tokens)
        client.show(hosted.url, questions, count)
        for kind in ("http", "direct") if repeat % 2 == 0 else ("direct", "http"):
            teller.at(f"repeat {repeat + 1} of {arguments.repeats}, {kind}")
            hosted.forget()
            if kind == "http":
                http.append(over_http(hosted, client, questions))
            else:
                direct.append(hosted.direct(questions))
            teller.step()
    return http, direct


def over_http(hosted: HostedGateway, client: ClientProcess, questions: Sequence[Asked]) -> LoadResult:
    """Ask all at once over HTTP."""
    before = hosted.loop_seconds()
    answers, seconds = client.ask(hosted.url, questions, len(questions))
    used = hosted.loop_seconds() - before
    first = [answer.first_seconds for answer in answers if answer.moments]
    return LoadResult(sum(a.tokens for a in answers), seconds, used, sum(first) / max(1, len(first)))


def _routing_shares(
    arguments: argparse.Namespace, hosted: HostedGateway, client: ClientProcess, teller: Teller
) -> list[RoutingShare]:
    """Ask what was never asked: one after the other, and all at once."""
    shares = []
    for name, count, at_once in (("one by one", _SINGLES, 1), ("all at once", arguments.concurrent, None)):
        teller.at(f"new questions, {name}")
        asked = [
            Asked(900_000 + place, f"{name.title()}, number {place}: what is in the picture?", 4)
            for place in range(count)
        ]
        names = ("routing_seconds_sum", "time_to_first_token_seconds_sum")
        before = [hosted.sample(f"strata_{series}") for series in names]
        hosted.forget()
        client.ask(hosted.url, asked, at_once or count)
        routing, first = (
            (hosted.sample(f"strata_{series}") - earlier) / count
            for series, earlier in zip(names, before, strict=True)
        )
        shares.append(RoutingShare(name, routing, first))
        teller.step()
    return shares


def overheads(http: Sequence[LoadResult], direct: Sequence[LoadResult]) -> list[float]:
    """Return how much slower each load over HTTP was than its like: 0.05 is five percent."""
    rates = ratios([load.tokens_per_second for load in direct], [load.tokens_per_second for load in http])
    return [rate - 1 for rate in rates]


def _print(
    http: Sequence[LoadResult],
    direct: Sequence[LoadResult],
    shares: Sequence[RoutingShare],
    parts: Sequence[RoutingParts],
) -> None:
    print("| Load | tokens/s | first token (s) | event loop, ms of processor a token |")
    print("|---|---|---|---|")
    for name, loads in (("over HTTP", http), ("directly", direct)):
        rate = Spread.of(load.tokens_per_second for load in loads).shown(digits=1)
        first = Spread.of(load.first_seconds for load in loads).shown()
        loop = Spread.of(load.loop_seconds / max(1, load.tokens) for load in loads).shown(1000)
        print(f"| {name} | {rate} | {first} | {loop} |")
    print(f"\noverhead of HTTP: {Spread.of(overheads(http, direct)).shown(100, 1, ' %')} (goal 5 %)")
    for share in shares:
        first, routing = 1000 * share.first_token_seconds, 1000 * share.routing_seconds
        print(
            f"routing of new questions, {share.load}: {100 * share.share:.1f} % of the time to the first "
            f"token (goal 2 %): {routing:.1f} of {first:.0f} ms"
        )
    for part in parts:
        print(
            f"routing {part.questions} new questions: sentences {part.sentences_ms:.1f} ms, "
            f"coefficients {part.coefficients_ms:.2f} ms"
        )


if __name__ == "__main__":
    sys.exit(main())
