"""Measure one decoding step at the size of a large LLaVA, with increments and without.

    python -m benchmarks.decode --shape llava-1.5-7b --device cuda --dtype bfloat16
                                [--batch 32] [--rank 256] [--targets o_proj | all] [--json OUT]

Weights are random, so nothing is downloaded and nothing that is said means anything; times are those of the
shape, on the ``transformers`` engine (vLLM computes whole banks in graphs: STRATA_POOL_RANK). Every row of
the batch has coefficients of its own over a pool of that total rank on all layers, and a context of its own
in the key-value memory. Steps with increments, without, and with two banks of which each row uses one
alternate. Two floors stand beside the ratio: multiply-adds alone, and bytes alone (weights and
keys that a step must read), which bounds a GPU's step.
"""

from __future__ import annotations

from adapter_store.base.allocator import tune_allocator

tune_allocator()

import argparse  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from typing import Any, cast  # noqa: E402

import torch  # noqa: E402
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig  # noqa: E402

from adapter_store.increments import Bank, attach  # noqa: E402
from benchmarks.live.figures import Spread, ratios  # noqa: E402
from benchmarks.program import program_parser, run_program, write_figures  # noqa: E402
from benchmarks.serving.floor import floor_ratio  # noqa: E402
from benchmarks.serving.workload import SELECTED, coefficients, random_pool  # noqa: E402
from benchmarks.telling import told  # noqa: E402
from server.engine.banks import BankSlot, spread  # noqa: E402
from server.engine.protocol import GenerationRequest  # noqa: E402
from server.engine.runner import Runner  # noqa: E402
from server.engine.sequence import Sequence as Row  # noqa: E402

ALL_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGETS = {"o_proj": ("o_proj",), "all": ALL_LINEARS}
GOALS = {"o_proj": 0.98, "all": 0.92}
SHAPES = {
    "llava-1.5-7b": LlamaConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
    ),
    "tiny": LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
    ),
}
_VISION = SiglipVisionConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
)
SYSTEMS = ("base", "pool", "two banks")


def random_llava(shape: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a LLaVA whose language model has the named shape, and a tower that is never used."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlavaForConditionalGeneration(
                LlavaConfig(text_config=SHAPES[shape], vision_config=_VISION)
            )
    finally:
        torch.set_default_dtype(before)
    return model.eval()


class Bench:
    """Hold the model, its banks and a batch that decodes.

    Args:
        shape: name of the language model's shape.
        targets: linears that increments act on.
        rank: total rank of the pool; increments are of rank 8.
        batch: rows.
        context: tokens that each row has behind it.
        device: where everything lies.
        dtype: of weights, keys and values.
    """

    def __init__(
        self,
        shape: str,
        targets: Sequence[str],
        rank: int,
        *,
        batch: int,
        context: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        model = random_llava(shape, device, dtype)
        increments = attach(model, targets)
        length = context + 64
        self.runner = Runner(
            model, increments, image_token_id=-1, max_batch=batch, max_model_len=length, kv_bytes=1 << 40
        )
        self.runner.memory.ensure(batch, length)
        self.floor = floor_ratio(model, increments.shapes, rank)
        weights = sum(
            p.numel() for p in (*model.model.language_model.parameters(), *model.lm_head.parameters())
        )
        weights -= self.runner.embed_tokens.weight.numel()  # a few rows of it are read
        keys = batch * context * self.runner.memory.token_bytes // dtype.itemsize
        pool = rank * sum(layers * (d_in + d_out) for layers, d_in, d_out in increments.shapes.values())
        self.bytes_floor = (weights + keys) / (weights + keys + pool)
        slots = [self._slot(index, random_pool("random", increments.shapes, rank, index)) for index in (0, 1)]
        base = BankSlot(version="base")
        self.rows = {
            "base": self._rows([base] * batch, context),
            "pool": self._rows([slots[0]] * batch, context),
            "two banks": self._rows([slots[number % 2] for number in range(batch)], context),
        }

    def _slot(self, index: int, state: Any) -> BankSlot:
        bank = Bank.from_state(state, dtype=self.runner.dtype, device=self.runner.device)
        return BankSlot(index, f"v{index}", bank, increments=state.rows, rank=state.rank)

    def _rows(self, slots: Sequence[BankSlot], context: int) -> list[Row]:
        request = GenerationRequest("", (0,) * context)
        vectors = coefficients(len(slots), max(slots[0].increments, SELECTED))
        return [
            Row(
                request,
                emit=lambda _chunk: None,
                stream=cast("Any", None),
                max_tokens=1,
                lease=slot,
                gate=None if slot.bank is None else spread(slot, vector),
                slot=number,
                filled=context,
                output=[number],
            )
            for number, (slot, vector) in enumerate(zip(slots, vectors, strict=True))
        ]

    @torch.inference_mode()
    def seconds(self, system: str, steps: int) -> float:
        """Return the mean time of ``steps`` decoding steps, scores of the next token included."""
        rows = self.rows[system]
        self._wait()
        began = time.perf_counter()
        for _ in range(steps):
            self.runner.logits(self.runner.decode(rows))
        self._wait()
        return (time.perf_counter() - began) / steps

    def _wait(self) -> None:
        if self.runner.device.type == "cuda":
            torch.cuda.synchronize(self.runner.device)


def measure(bench: Bench, repeats: int, steps: int) -> dict[str, list[float]]:
    """Time all systems in turns, in an order that changes, after one turn that does not count."""
    found: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    with told((repeats + 1) * len(SYSTEMS)) as teller:
        for repeat in range(-1, repeats):
            turn = repeat % len(SYSTEMS)
            for name in SYSTEMS[turn:] + SYSTEMS[:turn]:
                teller.at(name)
                seconds = bench.seconds(name, steps)
                teller.step()
                if repeat >= 0:
                    found[name].append(seconds)
    return found


def as_text(found: dict[str, list[float]], bench: Bench, goal: float) -> str:
    """Lay out times and ratios; a ratio is of two times of one repeat."""
    lines = [
        "| | ms a step | base / this | floor by multiply-adds | floor by bytes | goal |",
        "|---|---|---|---|---|---|",
    ]
    for name, times in found.items():
        share = Spread.of(ratios(found["base"], times)).shown(digits=3)
        floors = (
            ("", "", "") if name == "base" else (f"{bench.floor:.3f}", f"{bench.bytes_floor:.3f}", f"{goal}")
        )
        lines.append(f"| {name} | {Spread.of(times).shown(1000)} | {share} | {' | '.join(floors)} |")
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = program_parser("benchmarks.decode", "Measure decoding steps.")
    parser.add_argument("--shape", choices=SHAPES, default="llava-1.5-7b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--targets", choices=TARGETS, default="o_proj")
    parser.add_argument("--rank", type=int, default=256, help="total rank of the pool")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=640, help="tokens behind each row: a picture has 576")
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    arguments = parse_arguments(argv)
    return run_program(lambda _: _report(arguments))


def _report(arguments: argparse.Namespace) -> None:
    bench = Bench(
        arguments.shape,
        TARGETS[arguments.targets],
        arguments.rank,
        batch=arguments.batch,
        context=arguments.context,
        device=torch.device(arguments.device),
        dtype=getattr(torch, arguments.dtype),
    )
    found = measure(bench, arguments.repeats, arguments.steps)
    print(as_text(found, bench, GOALS[arguments.targets]))
    record = {"arguments": vars(arguments), "seconds": found}
    write_figures(arguments.json, {**record, "floor": bench.floor, "bytes_floor": bench.bytes_floor})


if __name__ == "__main__":
    sys.exit(main())
