"""Score a base on held-out pictures, beside the same questions with a blank picture, and check its chat.

python -m trainer_worker.pretrain.evaluate [--base FOLDER]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from adapter_store.base.assemble import assemble
from adapter_store.base.download import default_cache_dir, fetch, fetch_all
from adapter_store.base.load import Base, load_base
from adapter_store.base.packages import BASE_PACKAGES, EASY_VQA
from adapter_store.base.trained_part import TrainedPart
from trainer_worker.pretrain.chat import held_out_prompts, reply_to
from trainer_worker.pretrain.easy import EasyVqa
from trainer_worker.pretrain.language import PackedLanguageModel
from trainer_worker.pretrain.mixture import SHARES, Mixture
from trainer_worker.pretrain.packing import Batch, Packer, Row, Segment, collate
from trainer_worker.pretrain.visual import embed, project, to_pixels

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
    groups: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in sorted(seen)}
    groups |= {"shape and color": _SHAPE_AND_COLOR, "yes/no": _YES_NO, "scene yes/no": ("yes/no",)}
    groups["all"] = tuple(seen)
    return {name: _group(seen, guessed, kinds) for name, kinds in groups.items()}


@torch.no_grad()
def score(
    batches: list[Batch], language: PackedLanguageModel, tower: Any, projector: torch.nn.Module
) -> dict[str, tuple[int, int]]:
    """Count exactly right answers by kind: every answer token must be the most likely, as in greedy decoding.

    Returns:
        `kind -> (right, asked)`.
    """
    counts: dict[str, tuple[int, int]] = {}
    for batch in batches:
        embedded = embed(batch, language.embedding, project(batch, tower, projector))
        hidden = language(embedded, batch.positions, batch.mask)
        best = (hidden[batch.predict_at] @ language.embedding.t()).argmax(-1)
        wrong = set(batch.segment_of[best != batch.predict].tolist())
        for number, kind in enumerate(batch.kinds):
            right, asked = counts.get(kind, (0, 0))
            counts[kind] = (right + (number not in wrong), asked + 1)
    return counts


@torch.no_grad()
def score_one_by_one(base: Base, probes: Sequence[tuple[Image.Image, str, str]]) -> list[bool]:
    """Say for every `(picture, question, answer)` whether plain greedy generation answers exactly so."""
    right: list[bool] = []
    for image, question, answer in probes:
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        text = base.processor.apply_chat_template([turn], add_generation_prompt=True)
        inputs = base.processor(text=[text], images=[image], return_tensors="pt")
        output = base.model.generate(**inputs, max_new_tokens=12, do_sample=False)
        reply = base.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right.append(reply.strip() == answer)
    return right


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


def evaluate(base: Base, pictures: int = 120) -> dict[str, Any]:
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
