"""Measure what increments cost vLLM, beside the bare base, native LoRA and PEFT: same requests, in turns.

    python -m benchmarks.serving [--json OUT] [--plots DIR] [--repeats 5] [--concurrent 1 8 32] [--rates 1 2
    4]

Every request brings a picture of its own and gets 64 new tokens. One engine process for each system stays
up during the whole run; in every repeat all systems answer the same requests in another order, and ratios
are taken within a repeat. Pools have total rank 64 and 256 on the linears that versions adapt
(``--targets``), on all layers unless ``--frozen-share`` leaves some out; each request has coefficients of
its own on four increments. The native LoRA of a request holds just these four, composed: rank 32 instead of
64 or 256. The floor is what multiply-adds alone would allow.
"""

from __future__ import annotations

from adapter_store.base.allocator import tune_allocator

tune_allocator()

import argparse  # noqa: E402
import asyncio  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from dataclasses import asdict  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from adapter_store.base import load_base  # noqa: E402
from adapter_store.base.load import Base  # noqa: E402
from adapter_store.increments import attach  # noqa: E402
from benchmarks.live.figures import Spread  # noqa: E402
from benchmarks.program import (  # noqa: E402
    add_base,
    base_place,
    program_parser,
    run_program,
    write_figures,
)
from benchmarks.serving.floor import floor_ratio  # noqa: E402
from benchmarks.serving.peft_batch import PeftSystem  # noqa: E402
from benchmarks.serving.report import BASE, as_markdown, draw_latency, draw_throughput, ratios  # noqa: E402
from benchmarks.serving.rounds import Latency, Load, interleaved, open_load  # noqa: E402
from benchmarks.serving.systems import NativeLora, Pool, System, VllmSystem  # noqa: E402
from benchmarks.serving.workload import Workload, coefficients, random_pool, write_loras  # noqa: E402
from benchmarks.telling import told  # noqa: E402
from server.engine.vllm_client.options import VllmOptions  # noqa: E402

TARGETS = ("o_proj",)
DISTINCT = 32
LORA_RANK = 32
NAMES = {
    "base": BASE,
    "r64": "pool R=64",
    "r64x2": "pool R=64, two banks",
    "r256": "pool R=256",
    "r256x2": "pool R=256, two banks",
    "lora1": "native LoRA, 1 adapter",
    "lora32": "native LoRA, 32 adapters",
    "lora1-restricted": "native LoRA, 1 adapter, same linears",
    "lora32-restricted": "native LoRA, 32 adapters, same linears",
    "peft": "transformers + PEFT, 32 adapters",
}


def make_systems(
    names: Sequence[str], base: Base, arguments: argparse.Namespace, folder: Path
) -> dict[str, System]:
    """Return the named systems, not yet started."""
    attached = attach(base.model, TARGETS, arguments.frozen_share)
    shapes, paths = attached.shapes, attached.paths
    attached.detach()
    options = VllmOptions(
        targets=TARGETS,
        frozen_share=arguments.frozen_share,
        max_batch=max(64, *arguments.concurrent),
        max_model_len=512,
        kv_bytes=arguments.kv_bytes,
        threads=arguments.threads,
        gpu_memory_utilization=0.9 / len(names),  # all engines stay up side by side
        block_size=arguments.block_size,
    )
    found: dict[str, System] = {}
    small = random_pool(base.digest, shapes, 64)
    vectors = coefficients(DISTINCT, small.rows)
    folders = (
        write_loras(folder, base, small, vectors, paths)
        if any("lora" in name or name == "peft" for name in names)
        else []
    )
    for name in names:
        shown = NAMES[name]
        if name == "base":
            found[name] = VllmSystem(shown, base, options)
        elif name.startswith("r"):
            rank, banks = int(name[1:].split("x")[0]), 2 if name.endswith("x2") else 1
            states = [random_pool(base.digest, shapes, rank, seed) for seed in range(banks)]
            found[name] = Pool(
                shown, base, options, states=states, vectors=coefficients(DISTINCT, states[0].rows)
            )
        elif name.startswith("lora"):
            used = folders if "32" in name else folders[:1]
            targets = TARGETS if name.endswith("restricted") else None
            found[name] = NativeLora(shown, base, options, folders=used, rank=LORA_RANK, targets=targets)
        else:
            found[name] = PeftSystem(shown, base, folders)
    return found


async def measure(
    systems: dict[str, System], workload: Workload, arguments: argparse.Namespace, tick: Callable[[str], None]
) -> tuple[list[Load], list[Latency]]:
    """Start everything, run the closed loads in turns, then the open ones."""
    for system in systems.values():
        tick(f"starting {system.name}")
        await system.open()
    loads: list[Load] = []
    for concurrent in arguments.concurrent:
        some = [
            system for system in systems.values() if concurrent == max(arguments.concurrent) or _small(system)
        ]
        loads += await interleaved(some, workload, concurrent, arguments.repeats, tick)
    latencies: list[Latency] = []
    for rate in arguments.rates:
        for system in (systems[name] for name in ("base", "r64", "r256") if name in systems):
            latencies.append(await open_load(system, workload, rate, arguments.seconds))
            tick(f"{system.name}, {rate:g} a second: {latencies[-1].median_seconds:.2f} s")
    return loads, latencies


def _small(system: System) -> bool:
    """Tell whether a system is measured at every concurrency: base, one bank, restricted LoRA."""
    return system.name in {NAMES[name] for name in ("base", "r64", "r256", "lora32-restricted")}


def goals(loads: Sequence[Load], floors: dict[str, float], concurrent: int) -> dict[str, dict[str, Any]]:
    """Return the ratios that are promised, with their spread over repeats."""
    found: dict[str, dict[str, Any]] = {}

    def add(label: str, values: Sequence[float], goal: float) -> None:
        if values:
            found[label] = {"ratio": Spread.of(values).shown(digits=3), "values": list(values), "goal": goal}

    for rank in ("R=64", "R=256"):
        one, two = f"pool {rank}", f"pool {rank}, two banks"
        of_base = ratios(loads, one, BASE, concurrent)
        add(f"{one} / bare base / floor", [value / floors[one] for value in of_base], 0.97)
        add(f"{two} / one bank", ratios(loads, two, one, concurrent), 0.95)
        add(f"{one} / {NAMES['lora32']}", ratios(loads, one, NAMES["lora32"], concurrent), 3.0)
        add(
            f"{one} / {NAMES['lora32-restricted']}",
            ratios(loads, one, NAMES["lora32-restricted"], concurrent),
            1.25,
        )
    return found


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = program_parser("benchmarks.serving", "Measure what increments cost vLLM.")
    parser.add_argument("--plots", type=Path, help="folder for the plots")
    add_base(parser)
    parser.add_argument("--systems", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rates", type=float, nargs="*", default=[0.5, 1.0, 2.0], help="open loads")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of an open load")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frozen-share", type=float, default=0.0, help="share of layers left alone")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each engine")
    parser.add_argument("--kv-bytes", type=int, default=512 << 20, help="key-value memory of each engine")
    parser.add_argument("--block-size", type=int, default=None, help="tokens of a key-value block")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    arguments = parse_arguments(argv)
    return run_program(lambda folder: _report(arguments, folder))


def _report(arguments: argparse.Namespace, folder: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    base = load_base(base_place(arguments.base))
    systems = make_systems(arguments.systems, base, arguments, folder)
    shapes = attach(base.model, TARGETS, arguments.frozen_share).shapes
    ranks = {"r64": 64, "r256": 256, "r64x2": 64, "r256x2": 256}
    floors = {NAMES[name]: floor_ratio(base.model, shapes, rank) for name, rank in ranks.items()}
    try:
        loads, latencies = asyncio.run(_with_progress(systems, base, arguments))
    finally:
        for system in systems.values():
            system.close()
    most = max(arguments.concurrent)
    reached = goals(loads, floors, most)
    print(as_markdown(loads, floors))
    print()
    for label, entry in reached.items():
        print(f"{label}: {entry['ratio']}, goal {entry['goal']:g}")
    content = {
        "base": base.base_id,
        "arguments": vars(arguments),
        "floors": floors,
        "goals": reached,
        "loads": [asdict(load) for load in loads],
        "latencies": [asdict(latency) for latency in latencies],
    }
    write_figures(arguments.json, content)
    if arguments.plots:
        draw_throughput(arguments.plots / "throughput.png", loads)
        draw_latency(arguments.plots / "latency.png", latencies)


async def _with_progress(
    systems: dict[str, System], base: Base, arguments: argparse.Namespace
) -> tuple[list[Load], list[Latency]]:
    workload = Workload.for_base(base, arguments.new_tokens)
    small = sum(1 for system in systems.values() if _small(system))
    rounds = arguments.repeats + 1
    steps = len(systems) + rounds * (len(systems) + small * (len(arguments.concurrent) - 1))
    steps += len(arguments.rates) * sum(1 for name in ("base", "r64", "r256") if name in systems)
    with told(steps) as teller:

        def tick(text: str) -> None:
            teller.step()
            teller.at(text)

        return await measure(systems, workload, arguments, tick)


if __name__ == "__main__":
    sys.exit(main())
