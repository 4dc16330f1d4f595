"""Measure whether the number of tasks costs anything: pools of 8 to 4,096 increments behind one engine.

    python -m benchmarks.many_tasks [--json OUT] [--increments 8 64 512 4096] [--repeats 5] [--open-all]

All pools lie in one engine on the embedded base; loads of 32 requests take turns among them and the bare
base. Each request has a picture of its own and is routed as in serving: the keys of the tasks that are asked
lie around the queries of the 32 questions, those of the others at random directions. Times hold routing,
prompts and 32 tokens a request; pictures are encoded before.

Increments are drawn with the spectra that training leaves, for random factors have flat ones and do not fold.
In a lineage of six tasks (``benchmarks.forgetting --stream dataset --scale small``, o_proj of ten layers) a
task's mean increment has the singular values ``SPECTRUM`` (geometric mean), tasks lie at chance to each other
(overlap of their first eight directions 0.03; chance is 0.014), and all contexts stay half open (0.42 to
0.51). Here every run of six tasks is such a lineage: a task is half open to those before it in its run and
closed to other runs. ``--open-all`` opens it to all earlier tasks instead: hundreds of unrelated increments,
which do not fold.
"""

from __future__ import annotations

from adapter_store.base.allocator import tune_allocator

tune_allocator()

import argparse  # noqa: E402
import asyncio  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402

from adapter_store.base import ensure_embedded_base, load_base  # noqa: E402
from adapter_store.encoder import SentenceEncoder  # noqa: E402
from adapter_store.queries import QueryEncoder  # noqa: E402
from adapter_store.rendering import Message, Renderer  # noqa: E402
from adapter_store.routing import answering  # noqa: E402
from adapter_store.served import ServedPool, open_pool  # noqa: E402
from adapter_store.settings import DENSE_RANK, FROZEN_SHARE  # noqa: E402
from adapter_store.state import CLOSED_CONTEXT, AdapterState, RoutingSettings  # noqa: E402
from adapter_store.vision import VisionEncoder  # noqa: E402
from benchmarks.engine import answered, make_questions, peak_rss_mib, summarize  # noqa: E402
from benchmarks.program import program_parser, run_program, write_figures  # noqa: E402
from benchmarks.telling import told  # noqa: E402
from server.engine.protocol import GenerationRequest, Sampling  # noqa: E402
from server.engine.transformers_engine import TransformersEngine  # noqa: E402

REQUESTS, NEW_TOKENS = 32, 32
ROWS, RANK, LINEAGE = 8, 8, 6
SPECTRUM = (1.0, 0.687, 0.507, 0.382, 0.278, 0.216, 0.166, 0.140, 0.111, 0.084, 0.066, 0.053,
            0.041, 0.032, 0.026, 0.021, 0.017, 0.014, 0.011, 0.009, 0.007, 0.005, 0.004, 0.002)  # fmt: skip
BASE = "base"


@dataclass(frozen=True, slots=True)
class Pool:
    """Hold what was measured of a pool before any load; bytes are those of the staged increments."""

    increments: int
    tasks: int
    bytes: int
    open_seconds: float
    routing_seconds: float
    folds: int
    unfolded: int
    fold_rows_mean: float
    fold_rows_most: int
    fold_error: float
    touched_rows_mean: float
    touched_tasks: int


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one line of the table: tokens a second with its spread, and medians of ratios in turns.

    ``cpu_to_64`` compares tokens per second of this process' own computing time, which says more on a machine
    that others use.
    """

    pool: str
    tokens_per_second: float
    lowest: float
    highest: float
    to_64: float
    to_base: float
    cpu_to_64: float


@dataclass(frozen=True, slots=True)
class Load:
    """Hold what one load measured: tokens a second, and tokens a second of computing time."""

    tokens_per_second: float
    tokens_per_cpu_second: float


def make_state(
    digest: str, shapes: dict[str, tuple[int, int, int]], queries: Tensor, tasks: int, *, open_all: bool
) -> AdapterState:
    """Draw a pool of ``tasks`` tasks; the tasks of the questions are spread over it evenly.

    Args:
        digest: of the base.
        shapes: ``(layers, d_in, d_out)`` of the adapted linears.
        queries: ``[B, q]`` of the questions that will be asked.
        tasks: T; each has 8 increments of rank 8.
        open_all: open every context to all earlier tasks.
    """
    generator = torch.Generator().manual_seed(tasks)
    rows = tasks * ROWS
    asked = torch.arange(len(queries)) * tasks // len(queries)
    centers = normalize(torch.randn(tasks, queries.shape[1], generator=generator), dim=1)
    centers[asked] = queries
    keys = centers.repeat_interleave(ROWS, 0)
    keys = normalize(keys + 0.2 * normalize(torch.randn(keys.shape, generator=generator), dim=1), dim=1)
    context = torch.full((tasks, tasks), CLOSED_CONTEXT).tril(-1)
    for task in range(tasks):
        context[task, 0 if open_all else task - task % LINEAGE : task] = 0.0
    factors = {name: drawn_factors(shape, tasks, generator) for name, shape in shapes.items()}
    owners = torch.arange(tasks).repeat_interleave(ROWS)
    return AdapterState(
        base_digest=digest,
        targets=tuple(shapes),
        rank=RANK,
        span="after_image",
        routing=RoutingSettings(mode="text+image"),
        tasks=tuple(f"task-{index}" for index in range(tasks)),
        keys=keys[:, None],
        task_of=owners,
        branch_of=torch.zeros(rows, dtype=torch.int64),
        usage=torch.nn.functional.one_hot(owners).T.float() / ROWS,
        context=context,
        down={name: pair[0] for name, pair in factors.items()},
        up={name: pair[1] for name, pair in factors.items()},
        centroids=torch.zeros(0, queries.shape[1]),
        centroid_task=torch.zeros(0, dtype=torch.int64),
    )


def drawn_factors(
    shape: tuple[int, int, int], tasks: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return ``(A [L, N, r, d_in], B [L, N, d_out, r])`` whose mean over each task has the spectrum.

    Singular direction i belongs to increment ``i mod 8`` of the task; sides are random directions.
    """
    layers, d_in, d_out = shape
    strengths = torch.zeros(ROWS * RANK)
    strengths[: len(SPECTRUM)] = torch.tensor(SPECTRUM)
    strengths = strengths.view(RANK, ROWS).T.reshape(-1)
    down = torch.empty(layers, tasks, ROWS * RANK, d_in)
    up = torch.empty(layers, tasks, ROWS, d_out, RANK)
    for layer in range(layers):
        for task in range(tasks):
            left = torch.randn(d_out, ROWS * RANK, generator=generator) * strengths * (d_in * d_out) ** -0.5
            torch.randn(ROWS * RANK, d_in, generator=generator, out=down[layer, task])
            up[layer, task] = left.view(d_out, ROWS, RANK).transpose(0, 1)
    return down.view(layers, tasks * ROWS, RANK, d_in), up.flatten(1, 2)


class Bench:
    """Hold the engine, the 32 questions and the pools that are asked in turns."""

    def __init__(self, threads: int | None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.base = load_base(ensure_embedded_base(), dtype="float32", device="cpu")
        self.renderer = Renderer(self.base)
        self.questions = make_questions(REQUESTS, seed=0)
        self.features = VisionEncoder(self.base).encode([question.picture for question in self.questions])
        self.routing = RoutingSettings(mode="text+image")
        sentences = SentenceEncoder(self.base.sentence_encoder, self.base.model.device)
        texts = [question.text for question in self.questions]
        pooled = [feature.pooled for feature in self.features]
        with torch.inference_mode():
            found = QueryEncoder(sentences, self.base.calibration).encode(texts, pooled, self.routing)
        self.queries = normalize(found.float().clone(), dim=1)
        self.pools: dict[str, ServedPool] = {}

    def open(self, increments: Sequence[int], *, open_all: bool) -> list[Pool]:
        """Start an engine, and draw, fold and stage the pools."""
        self.engine = TransformersEngine(
            self.base,
            max_batch=REQUESTS,
            max_model_len=512,
            frozen_share=FROZEN_SHARE,
            banks=max(2, len(increments)),
        )
        self.engine.start()
        return [self._open(count, open_all=open_all) for count in increments]

    def _open(self, increments: int, *, open_all: bool) -> Pool:
        tasks = increments // ROWS
        shapes = self.engine.shapes
        state = make_state(self.base.digest, shapes, self.queries, tasks, open_all=open_all)
        began = time.perf_counter()
        pool = open_pool(state)
        seconds = time.perf_counter() - began
        asyncio.run(self.engine.stage(str(increments), pool.staged()))
        self.pools[str(increments)] = pool
        sizes = [fold.rows for fold in pool.folds.values()]
        contexts = sum(bool(row) for row in (torch.sigmoid(state.context).tril(-1) > 1e-9).any(dim=1))
        c = self.coefficients(str(increments))
        return Pool(
            increments=increments,
            tasks=tasks,
            bytes=sum(
                pool.rows * RANK * (d_in + d_out) * layers * 4 for layers, d_in, d_out in shapes.values()
            ),
            open_seconds=seconds,
            routing_seconds=self._routing_seconds(str(increments)),
            folds=len(sizes),
            unfolded=contexts - len(sizes) if state.total_rank > DENSE_RANK else 0,
            fold_rows_mean=statistics.mean(sizes) if sizes else 0.0,
            fold_rows_most=max(sizes, default=0),
            fold_error=max((fold.error for fold in pool.folds.values()), default=0.0),
            touched_rows_mean=float((c != 0).sum(dim=1).float().mean()),
            touched_tasks=len({int(state.task_of[int(row.argmax())]) for row in c[:, : state.rows]}),
        )

    def coefficients(self, name: str) -> Tensor:
        """Route all questions to a pool as the gateway does, ``[32, N']``."""
        pool = self.pools[name]
        with torch.inference_mode():
            return pool.coefficients(answering(pool.state, self.queries)).clone()

    def _routing_seconds(self, name: str) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            self.coefficients(name)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def load(self, name: str) -> Load:
        """Ask all questions at once and wait for all answers."""
        self.engine.forget_prefixes()
        began = time.process_time()
        speed = asyncio.run(self._load(name))
        return Load(speed, REQUESTS * NEW_TOKENS / (time.process_time() - began))

    async def _load(self, name: str) -> float:
        began = time.perf_counter()
        rows = None if name == BASE else self.coefficients(name)
        requests = []
        for index, question in enumerate(self.questions):
            prompt = self.renderer.prompt([Message("user", question.text, images=1)])
            requests.append(
                GenerationRequest(
                    request_id=str(index),
                    input_ids=prompt.input_ids,
                    images=(self.features[index],),
                    gate_start=prompt.gate_start("after_image"),
                    version=name,
                    coefficients=None if rows is None else rows[index],
                    sampling=Sampling(max_tokens=NEW_TOKENS, ignore_eos=True),
                )
            )
        return summarize(began, await answered(self.engine, requests)).tokens_per_second


def measure(bench: Bench, repeats: int) -> list[Row]:
    """Load the base and all pools in turns, in both directions, and compare within each turn."""
    names = [BASE, *bench.pools]
    for name in names:
        bench.load(name)
    turns: list[dict[str, Load]] = []
    with told(repeats) as teller:
        for repeat in range(repeats):
            teller.at(f"turn {repeat + 1} of {repeats}")
            order = names if repeat % 2 == 0 else names[::-1]
            turns.append({name: bench.load(name) for name in order})
            teller.step()
    reference = "64" if "64" in bench.pools else names[1]
    rows = []
    for name in names:
        speeds = [turn[name].tokens_per_second for turn in turns]
        to_64, to_base = (
            statistics.median(turn[name].tokens_per_second / turn[other].tokens_per_second for turn in turns)
            for other in (reference, BASE)
        )
        cpu = statistics.median(
            turn[name].tokens_per_cpu_second / turn[reference].tokens_per_cpu_second for turn in turns
        )
        rows.append(Row(name, statistics.median(speeds), min(speeds), max(speeds), to_64, to_base, cpu))
    return rows


def described(pool: Pool) -> str:
    """Say in a line what a pool is made of."""
    return (
        f"{pool.increments} increments: {pool.bytes / 2**20:.0f} MiB, opened in {pool.open_seconds:.1f} s, "
        f"32 questions routed in {1000 * pool.routing_seconds:.1f} ms; "
        f"{pool.folds} folds of {pool.fold_rows_mean:.1f} increments (most {pool.fold_rows_most}, "
        f"error {pool.fold_error:.4f}), {pool.unfolded} contexts unfolded; "
        f"a request touches {pool.touched_rows_mean:.1f} increments, all requests {pool.touched_tasks} tasks"
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = program_parser("benchmarks.many_tasks", "Measure pools of many tasks.")
    parser.add_argument("--increments", type=int, nargs="+", default=[8, 64, 512, 4096])
    parser.add_argument("--repeats", type=int, default=5, help="turns of one load each")
    parser.add_argument("--threads", type=int, help="computing threads; without it as torch chooses")
    parser.add_argument("--open-all", action="store_true", help="contexts draw on all earlier tasks")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    arguments = parse_arguments(argv)
    return run_program(lambda _: _report(arguments))


def _report(arguments: argparse.Namespace) -> None:
    bench = Bench(arguments.threads)
    pools = bench.open(arguments.increments, open_all=arguments.open_all)
    for pool in pools:
        print(described(pool))
    rows = measure(bench, arguments.repeats)
    bench.engine.shutdown()
    print("\n| increments | tokens/s (lowest to highest) | to 64 | to the base | to 64, computing time |")
    print("| --- | --- | ---: | ---: | ---: |")
    for row in rows:
        speeds = f"{row.tokens_per_second:.1f} ({row.lowest:.1f} to {row.highest:.1f})"
        print(f"| {row.pool} | {speeds} | {row.to_64:.3f} | {row.to_base:.3f} | {row.cpu_to_64:.3f} |")
    print(f"\npeak resident memory {peak_rss_mib():.0f} MiB, {torch.get_num_threads()} threads")
    content = {
        "pools": [asdict(pool) for pool in pools],
        "rows": [asdict(row) for row in rows],
        "threads": torch.get_num_threads(),
        "peak_rss_mib": peak_rss_mib(),
        "arguments": vars(arguments),
    }
    write_figures(arguments.json, content)


if __name__ == "__main__":
    sys.exit(main())
