"""Score an assembled base on held-out pictures, against the same questions with a blank picture, and check its chat.

python -m trainer_worker.pretrain.evaluate [--base FOLDER]
"""

from __future__ import annotations

from adapter_store.base.allocator import tune_allocator

if __name__ == "__main__":
    tune_allocator()

import argparse  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from adapter_store.base.assemble import assemble, ensure_embedded_base  # noqa: E402
from adapter_store.base.download import default_cache_dir, fetch, fetch_all  # noqa: E402
from adapter_store.base.load import Base, load_base  # noqa: E402
from adapter_store.base.packages import BASE_PACKAGES, EASY_VQA  # noqa: E402
from adapter_store.base.trained_part import TrainedPart, shipped_weights_dir  # noqa: E402
from trainer_worker.pretrain.chat import held_out_prompts, reply_to  # noqa: E402
from trainer_worker.pretrain.easy import EasyVqa  # noqa: E402
from trainer_worker.pretrain.language import PackedLanguageModel  # noqa: E402
from trainer_worker.pretrain.mixture import SHARES, Mixture  # noqa: E402
from trainer_worker.pretrain.packing import Batch, Packer, Row, Segment, collate  # noqa: E402
from trainer_worker.pretrain.training import score  # noqa: E402
from trainer_worker.pretrain.visual import to_pixels  # noqa: E402

LENGTH = 192
BARS = {"shape and color": 0.97, "yes/no": 0.93}
_SHAPE_AND_COLOR = ("shape", "color", "easy-vqa shape", "easy-vqa color")
_YES_NO = ("yes/no", "easy-vqa yes/no")
_ASKED_FOR_SHOW = (
    "Hello!",
    "What is the capital of France?",
    "Tell me something about the sea.",
    "Name three fruits.",
)


def packed(base: Base) -> PackedLanguageModel:
    """Return a base's language model in the form that scores packed questions."""
    inner = base.model.model.language_model
    return PackedLanguageModel(inner.state_dict(), base.model.config.text_config, rank=0)


def held_out_rows(packer: Packer, easy: EasyVqa, pictures: int) -> list[Row]:
    """Return packed held-out questions: other random streams, and easy-VQA's official test split."""
    mixture = Mixture(easy, "held-out", vary=False)
    rows: list[Row] = []
    for number in range(pictures):
        picture = mixture.picture(number)
        segments = [packer.segment([question]) for question in picture.questions]
        rows += packer.picture_rows(to_pixels(picture.image), segments)
    return rows


def question_scores(base: Base, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return accuracy by kind, with the picture and with a blank one in its place."""
    language = packed(base)
    tower, projector = base.model.model.vision_tower, base.model.model.multi_modal_projector
    blank = torch.zeros(3, 84, 84)
    seen = score(_batches(rows), language, tower, projector)
    guessed = score(_batches([replace(row, pixels=blank) for row in rows]), language, tower, projector)
    groups = {kind: (kind,) for kind in sorted(seen)}
    groups |= {"shape and color": _SHAPE_AND_COLOR, "yes/no": _YES_NO, "scene yes/no": ("yes/no",)}
    groups["all"] = tuple(seen)
    return {name: _group(seen, guessed, kinds) for name, kinds in groups.items()}


def _group(
    seen: dict[str, tuple[int, int]], guessed: dict[str, tuple[int, int]], kinds: Sequence[str]
) -> dict[str, float]:
    asked = sum(seen.get(kind, (0, 0))[1] for kind in kinds)
    right = sum(seen.get(kind, (0, 0))[0] for kind in kinds)
    blank = sum(guessed.get(kind, (0, 0))[0] for kind in kinds)
    return {"accuracy": right / max(1, asked), "question_only": blank / max(1, asked), "questions": asked}


def _batches(rows: Sequence[Row], size: int = 8) -> list[Batch]:
    return [collate(rows[start : start + size], LENGTH) for start in range(0, len(rows), size)]


def chat_scores(base: Base, untouched: Base) -> dict[str, float]:
    """Compare base and untouched language model on replies that the latter gives to prompts never trained on.

    Returns:
        `agreement`: share of tokens that the base predicts like the reply; `perplexity` of the replies under
        the base and `perplexity_untouched` under their author.
    """
    requests = held_out_prompts()
    replies = reply_to(untouched.model, untouched.tokenizer, requests)
    packer = Packer(base.tokenizer, LENGTH)
    dialogs = [packer.dialog(ask, reply) for ask, reply in zip(requests, replies, strict=True)]
    rows = [Row([], [dialog], None) for dialog in dialogs]
    agreement, loss = _replay(packed(base), rows)
    _, loss_untouched = _replay(packed(untouched), rows)
    return {
        "agreement": agreement,
        "perplexity": math.exp(loss),
        "perplexity_untouched": math.exp(loss_untouched),
    }


@torch.no_grad()
def _replay(language: PackedLanguageModel, rows: Sequence[Row]) -> tuple[float, float]:
    length = max(len(_only(row).tokens) for row in rows)
    hits: list[Tensor] = []
    losses: list[Tensor] = []
    for start in range(0, len(rows), 8):
        batch = collate(rows[start : start + 8], length)
        embedded = F.embedding(batch.ids, language.embedding)
        hidden = language(embedded, batch.positions, batch.mask)
        logits = hidden[batch.predict_at] @ language.embedding.t()
        hits.append(logits.argmax(-1) == batch.predict)
        losses.append(F.cross_entropy(logits, batch.predict, reduction="none"))
    return float(torch.cat(hits).float().mean()), float(torch.cat(losses).mean())


def _only(row: Row) -> Segment:
    (segment,) = row.segments
    return segment


def untouched_base() -> Base:
    """Return the base without the project's trained part, assembling it on first use."""
    folder = default_cache_dir() / "strata-base-135m-untrained"
    if not (folder / "base.json").is_file():
        assemble(
            folder, TrainedPart({}, {}, None, "untrained"), fetch_all(BASE_PACKAGES, default_cache_dir())
        )
    return load_base(folder)


def evaluate(base: Base, pictures: int = 400) -> dict[str, Any]:
    """Score a base: questions by kind beside the question-only baseline, and its chat."""
    easy = EasyVqa(fetch(EASY_VQA, default_cache_dir()), "test")
    rows = held_out_rows(Packer(base.tokenizer, LENGTH), easy, pictures)
    untouched = untouched_base()
    shown = reply_to(base.model, base.tokenizer, list(_ASKED_FOR_SHOW))
    return {
        "pictures": pictures,
        "mix": SHARES,
        "held_out": "random streams never trained on; easy-VQA's official test split",
        "bars": BARS,
        "questions": question_scores(base, rows),
        "chat": chat_scores(base, untouched),
        "replies": {
            ask: base.tokenizer.decode(reply, skip_special_tokens=True)
            for ask, reply in zip(_ASKED_FOR_SHOW, shown, strict=True)
        },
    }


def print_report(report: dict[str, Any]) -> None:
    """Print a report as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", "accuracy", "question only", "questions", title="Held-out pictures")
    for kind, row in report["questions"].items():
        table.add_row(kind, f"{row['accuracy']:.3f}", f"{row['question_only']:.3f}", str(row["questions"]))
    console = Console()
    console.print(table)
    console.print(report["chat"])
    console.print(report["replies"])


def main(arguments: list[str] | None = None) -> None:
    """Score a base and print (and, if asked, keep) the report."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer_worker.pretrain.evaluate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--base", type=Path, help="folder of the base (default: the embedded one)")
    parser.add_argument(
        "--pictures", type=int, default=400, help="held-out pictures to ask about (default 400)"
    )
    parser.add_argument("--write", type=Path, help="also write the report to this file")
    options = parser.parse_args(arguments)
    report = evaluate(load_base(options.base or ensure_embedded_base()), options.pictures)
    print_report(report)
    if options.write is not None:
        kept = options.write if options.write.suffix else shipped_weights_dir() / "report.json"
        kept.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
