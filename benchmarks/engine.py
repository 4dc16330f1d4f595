"""Measure the ``transformers`` engine: what coefficients cost, and what batching gains.

    python -m benchmarks.engine [--json OUT] [--base PATH] [--concurrent 1 8 32] [--repeats 3]

Every request brings its own picture and its own coefficients over one pool (8 increments of rank 8 on the
linears that versions adapt by default) and gets 32 new tokens. Beside the engine with increments on and off,
in turns in the same run: the library's ``generate`` one request at a time, and ``generate`` on one padded
batch with a mixed batch of PEFT adapters that hold the same increments. Times include the vision tower; every
load starts with new pictures and an empty prefix cache.
"""

from __future__ import annotations

from adapter_store.base.allocator import tune_allocator

tune_allocator()

import argparse  # noqa: E402
import asyncio  # noqa: E402
import resource  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from itertools import pairwise  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from adapter_store.base import load_base  # noqa: E402
from adapter_store.rendering import Message, Renderer  # noqa: E402
from adapter_store.settings import FROZEN_SHARE  # noqa: E402
from adapter_store.vision import VisionEncoder  # noqa: E402
from benchmarks.baselines import LibraryRunner  # noqa: E402
from benchmarks.live.figures import percentile  # noqa: E402
from benchmarks.program import (  # noqa: E402
    add_base,
    base_place,
    program_parser,
    run_program,
    write_figures,
)
from benchmarks.serving.workload import QUESTIONS, random_pool  # noqa: E402
from server.engine.protocol import GenerationRequest, Sampling  # noqa: E402
from server.engine.transformers_engine import TransformersEngine  # noqa: E402

VERSION = "v1"


@dataclass(frozen=True, slots=True)
class Load:
    """Hold what one load of requests measured: tokens a second, first-token seconds, gaps between tokens."""

    tokens_per_second: float
    first_token_seconds: float
    p99_gap_seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one line of the table."""

    concurrent: int
    system: str
    tokens_per_second: float
    first_token_seconds: float
    p99_gap_seconds: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """Hold one request as both sides need it."""

    text: str
    picture: Image.Image
    coefficients: torch.Tensor


def make_questions(count: int, seed: int) -> list[Question]:
    """Make requests with new pictures and sparse coefficients (4 of 8), as routing gives them."""
    generator = torch.Generator().manual_seed(seed)
    questions = []
    for index in range(count):
        pixels = torch.randint(0, 256, (6, 6, 3), generator=generator, dtype=torch.uint8).numpy()
        c = torch.rand(8, generator=generator) + 0.1
        c[torch.randperm(8, generator=generator)[:4]] = 0
        picture = Image.fromarray(pixels).resize((84, 84))
        questions.append(Question(QUESTIONS[index % len(QUESTIONS)], picture, c / c.sum()))
    return questions


class EngineRunner:
    """Run loads of questions through our engine."""

    def __init__(self, base: Any, new_tokens: int, max_batch: int, frozen_share: float) -> None:
        self.base, self.new_tokens = base, new_tokens
        self.renderer = Renderer(base)
        self.engine = TransformersEngine(
            base, max_batch=max_batch, max_model_len=512, frozen_share=frozen_share
        )
        self.engine.start()

    def run(self, questions: Sequence[Question], *, increments: bool) -> Load:
        """Ask all at once and wait for all answers."""
        self.engine.forget_prefixes()
        vision = VisionEncoder(self.base)
        return asyncio.run(self.load(questions, vision, increments=increments))

    async def load(self, questions: Sequence[Question], vision: VisionEncoder, *, increments: bool) -> Load:
        """Encode the pictures, ask everything at once, and read all answers."""
        began = time.perf_counter()
        features = vision.encode([question.picture for question in questions])
        requests = []
        for index, question in enumerate(questions):
            prompt = self.renderer.prompt([Message("user", question.text, images=1)])
            request = GenerationRequest(
                request_id=str(index),
                input_ids=prompt.input_ids,
                images=(features[index],),
                gate_start=prompt.gate_start("after_image"),
                version=VERSION if increments else "base",
                coefficients=question.coefficients if increments else None,
                sampling=Sampling(max_tokens=self.new_tokens, ignore_eos=True),
            )
            requests.append(request)
        return summarize(began, await answered(self.engine, requests))


async def answered(engine: TransformersEngine, requests: Sequence[GenerationRequest]) -> list[list[float]]:
    """Ask everything at once; return the moments of every request's tokens."""

    async def ask(request: GenerationRequest) -> list[float]:
        times = []
        async for chunk in engine.generate(request):
            times.append(time.perf_counter())
            if chunk.error:
                raise RuntimeError(chunk.error)
        return times

    return list(await asyncio.gather(*map(ask, requests)))


def summarize(began: float, times: Sequence[Sequence[float]]) -> Load:
    """Turn the moments of every request's tokens into a load's figures."""
    tokens = sum(len(moments) for moments in times)
    gaps = [b - a for moments in times for a, b in pairwise(moments)]
    return Load(
        tokens_per_second=tokens / (max(moments[-1] for moments in times) - began),
        first_token_seconds=statistics.median(moments[0] - began for moments in times),
        p99_gap_seconds=percentile(gaps, 0.99),
    )


def median_row(concurrent: int, system: str, loads: Sequence[Load], note: str = "") -> Row:
    """Take the median of each figure over repeated loads."""
    return Row(
        concurrent,
        system,
        statistics.median(load.tokens_per_second for load in loads),
        statistics.median(load.first_token_seconds for load in loads),
        statistics.median(load.p99_gap_seconds for load in loads),
        note,
    )


def measure_engine(runner: EngineRunner, concurrent: int, repeats: int) -> list[Row]:
    """Measure increments on and off in turns on the same questions, and the median ratio."""
    on: list[Load] = []
    off: list[Load] = []
    runner.run(make_questions(concurrent, seed=999), increments=True)
    for repeat in range(repeats):
        questions = make_questions(concurrent, seed=repeat)
        for increments in (repeat % 2 == 0, repeat % 2 == 1):
            (on if increments else off).append(runner.run(questions, increments=increments))
    ratio = statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in zip(on, off, strict=True))
    return [
        median_row(concurrent, "engine, increments on", on, f"{ratio:.3f} of off"),
        median_row(concurrent, "engine, increments off", off),
    ]


def measure_repeated(runner: EngineRunner, concurrent: int) -> Row:
    """Measure a load whose pictures were all seen shortly before."""
    questions = make_questions(concurrent, seed=7)
    vision = VisionEncoder(runner.base)
    runner.engine.forget_prefixes()
    asyncio.run(runner.load(questions, vision, increments=True))
    load = asyncio.run(runner.load(questions, vision, increments=True))
    return median_row(concurrent, "engine, on, pictures seen before", [load])


def measure_library(
    runner: LibraryRunner, concurrents: Sequence[int], limit: int, new_tokens: int
) -> list[Row]:
    """Measure ``generate`` one by one, on ``limit`` requests, and with PEFT mixed batches."""
    rows: list[Row] = []
    runner.one_by_one(make_questions(1, seed=998)[0], new_tokens)
    alone = [runner.one_by_one(question, new_tokens) for question in make_questions(limit, seed=0)]
    seconds = statistics.median(moments[-1] for moments in alone)
    first = statistics.median(moments[0] for moments in alone)
    gaps = [b - a for moments in alone for a, b in pairwise(moments)]
    for concurrent in concurrents:
        waiting = (concurrent - 1) / 2 * seconds
        rows.append(
            Row(
                concurrent,
                "generate, one by one",
                new_tokens / seconds,
                waiting + first,
                percentile(gaps, 0.99),
                f"from {limit} requests",
            )
        )
    for concurrent in concurrents:
        moments = runner.mixed_batch(make_questions(concurrent, seed=0), new_tokens)
        rows.append(
            median_row(concurrent, "generate, PEFT mixed batch", [summarize(0.0, [moments] * concurrent)])
        )
    return rows


def floor_seconds(model: Any, batch: int, repeats: int = 5) -> float:
    """Time the bare matrix products of one decoding step: no step of these weights can be faster here."""
    linears = [module for module in model.model.language_model.modules() if type(module) is torch.nn.Linear]
    linears.append(model.lm_head)
    inputs = {linear.in_features: torch.randn(batch, linear.in_features) for linear in linears}
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            began = time.perf_counter()
            for linear in linears:
                linear(inputs[linear.in_features])
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def step_seconds(runner: EngineRunner, batch: int) -> float:
    """Time one decoding step of the engine with ``batch`` rows, increments on."""
    questions = make_questions(batch, seed=11)
    steps: list[float] = []

    async def watch(task: asyncio.Task[Load]) -> None:
        seen = 0
        while not task.done():
            stats = runner.engine.stats()
            if stats.steps_total != seen and stats.waiting == 0 and stats.running == batch:
                seen = stats.steps_total
                steps.append(stats.last_step_seconds)
            await asyncio.sleep(0.002)

    async def both() -> None:
        task = asyncio.create_task(runner.load(questions, VisionEncoder(runner.base), increments=True))
        await watch(task)
        await task

    asyncio.run(both())
    return statistics.median(steps[len(steps) // 2 :]) if steps else float("nan")


def as_markdown(rows: Sequence[Row]) -> str:
    """Lay the rows out as a Markdown table."""
    lines = [
        "| concurrent | system | tokens/s | first token (ms) | p99 gap (ms) | |",
        "| ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for row in sorted(rows, key=lambda row: row.concurrent):
        figures = f"{row.tokens_per_second:.1f} | {1000 * row.first_token_seconds:.0f}"
        gap = f"{1000 * row.p99_gap_seconds:.0f}"
        lines.append(f"| {row.concurrent} | {row.system} | {figures} | {gap} | {row.note} |")
    return "\n".join(lines)


def peak_rss_mib() -> float:
    """Give this process' largest resident size so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = program_parser("benchmarks.engine", "Measure the transformers engine.")
    add_base(parser)
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="loads with increments on and off, each")
    parser.add_argument(
        "--one-by-one", type=int, default=4, help="requests timed for the one-by-one baseline"
    )
    parser.add_argument("--frozen-share", type=float, default=FROZEN_SHARE, help="0 adapts every layer")
    parser.add_argument("--threads", type=int, help="computing threads; without it as torch chooses")
    parser.add_argument("--no-library", action="store_true", help="leave the library's baselines out")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    arguments = parse_arguments(argv)
    return run_program(lambda _: _report(arguments))


def _report(arguments: argparse.Namespace) -> None:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    place = base_place(arguments.base)
    base = load_base(place)
    runner = EngineRunner(base, arguments.new_tokens, max(arguments.concurrent), arguments.frozen_share)
    shapes = runner.engine.shapes
    state = random_pool(base.digest, shapes, 64)
    asyncio.run(runner.engine.stage(VERSION, state))
    rows: list[Row] = []
    for concurrent in arguments.concurrent:
        rows += measure_engine(runner, concurrent, arguments.repeats)
    rows.append(measure_repeated(runner, max(arguments.concurrent)))
    memory = peak_rss_mib()
    steps = {batch: step_seconds(runner, batch) for batch in arguments.concurrent}
    floors = {batch: floor_seconds(base.model, batch) for batch in arguments.concurrent}
    runner.engine.shutdown()
    if not arguments.no_library:
        library = LibraryRunner(place, state)
        rows += measure_library(library, arguments.concurrent, arguments.one_by_one, arguments.new_tokens)
    print(as_markdown(rows))
    print_summary(rows, steps, floors, memory)
    content = {
        "rows": [asdict(row) for row in rows],
        "step_seconds": steps,
        "floor_seconds": floors,
        "peak_rss_mib": memory,
        "threads": torch.get_num_threads(),
        "base": base.base_id,
    }
    write_figures(arguments.json, content)


def print_summary(
    rows: Sequence[Row], steps: dict[int, float], floors: dict[int, float], memory: float
) -> None:
    """Print the goals' ratios, the distance to the floor, and the memory."""

    def by_name(concurrent: int, system: str) -> float:
        found = (r for r in rows if (r.concurrent, r.system) == (concurrent, system))
        return next((row.tokens_per_second for row in found), float("nan"))

    print()
    for concurrent in sorted({row.concurrent for row in rows}):
        ours = by_name(concurrent, "engine, increments on")
        print(
            f"{concurrent} concurrent: "
            f"{ours / by_name(concurrent, 'generate, one by one'):.1f} x one by one, "
            f"{ours / by_name(concurrent, 'generate, PEFT mixed batch'):.1f} x PEFT mixed batch; "
            f"a step takes {1000 * steps[concurrent]:.0f} ms, "
            f"its matrix products alone {1000 * floors[concurrent]:.0f} ms"
        )
    print(f"peak resident memory of the engine's process: {memory:.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
