"""Training speed: our loop beside a plain PEFT LoRA loop on the same data, and what the EMA costs.

Ours encodes every picture once, keeps the keys and values of its prefix, and runs questions and answers only,
several questions of one picture in a row. The plain loop is what a careful user writes with PEFT: processor,
padding, vision tower and whole sequence in every step, labels on the answer only.

    python -m benchmarks.training [--base FOLDER] [--pictures 32] [--questions 4] [--epochs 4] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from adapter_store.base.allocator import tune_allocator
from adapter_store.settings import FROZEN_SHARE
from benchmarks.program import add_base, base_place, program_parser, run_program, write_figures

RANK = 8


@dataclass(frozen=True, slots=True)
class Item:
    """One question of one picture (index)."""

    picture: int
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Speed:
    """Result of one loop: steady samples per second, and with everything before the first step counted in."""

    name: str
    steady: float
    whole: float
    prepare_seconds: float
    ema_ratio: float | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run both loops and print a Markdown table."""
    args = _arguments(argv)
    return run_program(lambda _: _report(args))


def _report(args: argparse.Namespace) -> None:
    tune_allocator()
    import torch

    from adapter_store.base.load import load_base

    cores = torch.get_num_threads()
    base = load_base(base_place(args.base), dtype="float32")
    pictures, items = _data(args.pictures, args.questions)
    ours = [_ours(base, pictures, items, args, span) for span in ("after_image", "all")]
    torch.set_num_threads(cores)
    plain = _plain(base, pictures, items, args)
    _print(ours, plain, args)
    rows = {"ours": [asdict(speed) for speed in ours], "plain": asdict(plain), "settings": vars(args)}
    write_figures(args.json, rows)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = program_parser("benchmarks.training", "Measure training beside a plain PEFT LoRA loop.")
    add_base(parser)
    parser.add_argument("--pictures", type=int, default=32, help="pictures with their questions")
    parser.add_argument("--questions", type=int, default=4, help="questions per picture")
    parser.add_argument("--epochs", type=int, default=4, help="passes over the data")
    parser.add_argument("--batch-size", type=int, default=32, help="questions per optimizer step")
    return parser.parse_args(argv)


def _data(pictures: int, questions: int) -> tuple[list[Image.Image], list[Item]]:
    """Draw scenes and ask ``questions`` short questions about each."""
    from trainer_worker.pretrain.scenes import scene_picture

    images: list[Image.Image] = []
    items: list[Item] = []
    seed = 0
    while len(images) < pictures:
        picture = scene_picture(random.Random(f"benchmark-{seed}"), wanted=4 * questions)
        seed += 1
        short = [asked for asked in picture.questions if len(asked.answer.split()) <= 2][:questions]
        if len(short) < questions:
            continue
        items += [Item(len(images), asked.text, asked.answer) for asked in short]
        images.append(picture.image)
    return images, items


def _ours(
    base: Any, pictures: list[Image.Image], items: list[Item], args: argparse.Namespace, span: Any
) -> Speed:
    import torch

    from adapter_store.datasets import Example, Turn
    from adapter_store.encoder import SentenceEncoder
    from adapter_store.increments import attach
    from adapter_store.jobs.hyperparameters import Hyperparameters
    from adapter_store.queries import QueryEncoder
    from adapter_store.rendering import Renderer
    from adapter_store.routing import intrinsic
    from adapter_store.state import AdapterState, RoutingSettings
    from adapter_store.vision import VisionEncoder
    from trainer_worker import ema as ema_module
    from trainer_worker.evaluate import warm
    from trainer_worker.features import Featurizer
    from trainer_worker.keys import align_keys
    from trainer_worker.language import LanguageModel
    from trainer_worker.learn import Lesson, learn
    from trainer_worker.prefixes import PrefixStore
    from trainer_worker.replicas import Replicas, share_cores

    increments = attach(base.model, ("o_proj",), FROZEN_SHARE)
    queries = QueryEncoder(SentenceEncoder(base.sentence_encoder), base.calibration)
    featurizer = Featurizer(renderer=Renderer(base), vision=VisionEncoder(base), queries=queries)
    language = LanguageModel.of(base.model, base.image_token_id, increments.first_layer)
    count, threads = share_cores(0, on_cpu=True)
    torch.set_num_threads(threads)
    replicas = Replicas(language, increments, count)
    routing = RoutingSettings("text")
    settings = Hyperparameters(
        epochs=args.epochs, batch_size=args.batch_size, pack=args.questions, patience=0
    )
    examples = [Example(str(n), str(i.picture), (Turn(i.question, i.answer),)) for n, i in enumerate(items)]
    times: list[float] = []
    balance = _timed(ema_module.BalancedEma.update, times)
    began = time.perf_counter()
    encoded = featurizer.encode(examples, lambda name: pictures[int(name)], routing)
    state = AdapterState.empty(base.digest, increments.shapes, queries.width(routing), RANK, span, routing)
    generator = torch.Generator().manual_seed(0)
    state = state.expand("benchmark", settings.rows_per_task, generator)
    keys = align_keys(encoded.queries, settings.rows_per_task, 4, generator).keys
    state = state.with_rows(state.rows_of("benchmark"), keys=keys)
    state = state.with_usage("benchmark", intrinsic(state, encoded.queries).mean(dim=0))
    store = PrefixStore(encoded.prefixes, encoded.pictures, budget_bytes=2 << 30)
    if span == "after_image":
        warm(replicas, encoded.samples, store, range(len(encoded)))
    prepared = time.perf_counter() - began
    stamps = [time.perf_counter()]
    original = ema_module.BalancedEma.update
    ema_module.BalancedEma.update = balance  # type: ignore[method-assign]
    try:
        learn(
            replicas,
            state,
            "benchmark",
            Lesson(encoded, store, tuple(range(len(items))), ()),
            settings,
            report=lambda _step: stamps.append(time.perf_counter()),
        )
    finally:
        ema_module.BalancedEma.update = original  # type: ignore[method-assign]
        increments.detach()
    return _speed(f"Strata, span {span}", stamps, len(items) * args.epochs, prepared, times)


def _timed(function: Any, times: list[float]) -> Any:
    def run(self: Any) -> Any:
        began = time.perf_counter()
        result = function(self)
        times.append(time.perf_counter() - began)
        return result

    return run


def _plain(base: Any, pictures: list[Image.Image], items: list[Item], args: argparse.Namespace) -> Speed:
    """Train a PEFT LoRA of the same total rank on the same linears, one question per row, on all cores."""
    import torch
    from peft import LoraConfig, get_peft_model

    from adapter_store.jobs.hyperparameters import Hyperparameters

    began = time.perf_counter()
    rank = RANK * Hyperparameters().rows_per_task
    depth = base.model.config.text_config.num_hidden_layers
    adapted = "|".join(str(layer) for layer in range(int(FROZEN_SHARE * depth), depth))
    linears = rf".*language_model\.layers\.({adapted})\..*o_proj"
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=linears)
    model = get_peft_model(base.model, config)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0)
    prepared = time.perf_counter() - began
    stamps = [time.perf_counter()]
    rng = random.Random(0)
    for _ in range(args.epochs):
        order = list(items)
        rng.shuffle(order)
        for start in range(0, len(order), args.batch_size):
            inputs = _padded(base, pictures, order[start : start + args.batch_size])
            loss = model(**inputs).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            stamps.append(time.perf_counter())
    model.unload()
    return _speed("PEFT LoRA loop", stamps, len(items) * args.epochs, prepared, None)


def _padded(base: Any, pictures: list[Image.Image], items: list[Item]) -> dict[str, Any]:
    processor = base.processor
    prompts, texts = [], []
    for item in items:
        content = [{"type": "image"}, {"type": "text", "text": item.question}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        prompts.append(prompt)
        texts.append(prompt + item.answer + base.tokenizer.eos_token)
    images = [pictures[item.picture] for item in items]
    base.tokenizer.padding_side = "right"
    inputs = dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))
    labels = inputs["input_ids"].clone()
    lengths = processor(text=prompts, images=images, padding=True, return_tensors="pt")["attention_mask"].sum(
        dim=1
    )
    for row, length in enumerate(lengths.tolist()):
        labels[row, :length] = -100
    labels[inputs["attention_mask"] == 0] = -100
    return {**inputs, "labels": labels}


def _speed(name: str, stamps: list[float], samples: int, prepared: float, ema: list[float] | None) -> Speed:
    steps = [after - before for before, after in itertools.pairwise(stamps)]
    per_step = samples / len(steps)
    ratio = statistics.median(ema) / statistics.median(steps) if ema else None
    whole = samples / (prepared + stamps[-1] - stamps[0])
    return Speed(name, per_step / statistics.median(steps), whole, prepared, ratio)


def _print(ours: list[Speed], plain: Speed, args: argparse.Namespace) -> None:
    sizes = f"{args.pictures} pictures x {args.questions} questions, {args.epochs} epochs"
    print(f"{sizes}, batches of {args.batch_size}\n")
    print(
        "| loop | samples/s, steady | beside PEFT | samples/s, with preparation | beside PEFT | EMA's share |"
    )
    print("|---|---|---|---|---|---|")
    for speed in (*ours, plain):
        share = "" if speed.ema_ratio is None else f"{speed.ema_ratio:.1%}"
        print(
            f"| {speed.name} | {speed.steady:.1f} | {speed.steady / plain.steady:.2f}x"
            f" | {speed.whole:.1f} | {speed.whole / plain.whole:.2f}x | {share} |"
        )
    print("\nGoals: at least 1.5x beside PEFT, the EMA at most 3 % of a step.")


if __name__ == "__main__":
    sys.exit(main())
