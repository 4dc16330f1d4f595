"""Train projector and low-rank change within a wall-clock budget: resumable, logged, exported."""

from __future__ import annotations

import json
import math
import os
import queue
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter_store.base.assemble import VISION_LAYERS
from adapter_store.base.trained_part import save_trained_part
from adapter_store.calibration import ImageCalibration
from trainer_worker.pretrain.chat import prompts, reply_to
from trainer_worker.pretrain.easy import EasyVqa
from trainer_worker.pretrain.language import PackedLanguageModel
from trainer_worker.pretrain.mixture import Mixture
from trainer_worker.pretrain.packing import Batch, Packer, Row, Segment, collate
from trainer_worker.pretrain.picture import COLORS, Picture
from trainer_worker.pretrain.scenes import SHAPES
from trainer_worker.pretrain.visual import Projector, WordTargets, embed, project, to_pixels, tower_features
from trainer_worker.pretrain.words import LETTERS


@dataclass(frozen=True, slots=True)
class Settings:
    """Say how to train.

    Attributes:
        minutes: Wall-clock budget of the main phase; the learning rate follows its elapsed share.
        warmup_pictures: Pictures of the first phase, in which only the projector learns words of patches.
        warmup_steps: Steps of 32 pictures in that phase.
        word_weight: Weight of the patches' words in the main phase's loss.
        rows: Rows per step.
        length: Tokens per row.
        rank: Rank of the change of every stacked linear.
        learning_rate: Peak for the low-rank factors.
        projector_rate: Peak for the projector.
        chat_share: Part of the rows that is text only.
        dialogs: How many self-made dialogs to repeat.
        shards: Threads that each work on their share of the rows alone; they meet once per step, so a busy
            machine costs less than threads that share every matrix product.
        seed: Seed of everything.
        checkpoint_seconds: Time between checkpoints.
    """

    minutes: float = 55.0
    warmup_pictures: int = 8000
    warmup_steps: int = 2000
    word_weight: float = 0.2
    rows: int = 4
    length: int = 192
    rank: int = 16
    learning_rate: float = 1.2e-3
    projector_rate: float = 2e-4
    chat_share: float = 0.06
    dialogs: int = 384
    shards: int = 2
    seed: int = 0
    checkpoint_seconds: float = 300.0


class Trainer:
    """Hold everything that a run needs.

    Args:
        model: The untrained base (`LlavaForConditionalGeneration`).
        tokenizer: Its tokenizer.
        easy: easy-VQA's official training split.
        settings: How to train.
        out: Folder for state, log and trained part.
    """

    def __init__(self, model: Any, tokenizer: Any, easy: EasyVqa, settings: Settings, out: Path) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.out, self.tokenizer, self.model = settings, out, tokenizer, model
        self.tower = model.model.vision_tower
        state = model.model.language_model.state_dict()
        self.language = PackedLanguageModel(state, model.config.text_config, settings.rank)
        vocabulary = [" " + word for word in (*COLORS, *SHAPES, "bar", *LETTERS, *LETTERS.lower())]
        self.words = WordTargets(vocabulary, tokenizer, self.language.embedding)
        self.packer = Packer(tokenizer, settings.length)
        self.mixture = Mixture(easy, f"train-{settings.seed}", vary=True)
        self.rng = random.Random(f"rows-{settings.seed}")
        self.log = (out / "training_log.jsonl").open("a", encoding="utf-8")
        self.picture_number = 0
        self.step = 0
        self.elapsed = 0.0
        self.questions = 0
        self.calibration: ImageCalibration
        self.projector: Projector
        self.dialogs: list[Segment] = []

    def write_log(self, **entry: Any) -> None:
        """Append one line to the log and print it."""
        entry["clock"] = time.strftime("%H:%M:%S")
        line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in entry.items()})
        self.log.write(line + "\n")
        self.log.flush()
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def prepare(self) -> None:
        """Make the dialogs and warm the projector up, or read both from an earlier start of this run."""
        path, width = self.out / "prepared.pt", self.language.embedding.shape[1]
        requests = prompts(self.settings.dialogs, self.settings.seed)
        if path.is_file():
            kept = torch.load(path, weights_only=True)
            self.calibration, replies = ImageCalibration(*kept["calibration"]), kept["replies"]
            self.projector = Projector(kept["projector"]["mean"], kept["projector"]["std"], width)
            self.projector.load_state_dict(kept["projector"])
        else:
            replies = reply_to(self.model, self.tokenizer, requests)
            self.write_log(phase="dialogs", count=len(replies))
            self.warm_up()
            state = {"replies": replies, "projector": self.projector.state_dict()}
            torch.save(state | {"calibration": self._calibrated()}, path)
        self.dialogs = [self.packer.dialog(ask, reply) for ask, reply in zip(requests, replies, strict=True)]

    def warm_up(self) -> None:
        """Teach the projector to answer every patch with the embeddings of the words that describe it."""
        count = self.settings.warmup_pictures
        features, targets = self._described(count)
        self.write_log(phase="features", pictures=len(features))
        flat = features[: min(4000, len(features))].float().reshape(-1, features.shape[-1])
        hidden = features.shape[-1] // len(VISION_LAYERS)
        self.calibration = ImageCalibration.of(features[..., -hidden:].float().mean(1))
        self.projector = Projector(flat.mean(0), flat.std(0), self.language.embedding.shape[1])
        optimizer = torch.optim.AdamW(self.projector.parameters(), lr=2e-3, weight_decay=0.01)
        steps = self.settings.warmup_steps
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(1.0, (step + 1) / 40) * (1.0 - 0.95 * step / steps)
            chosen = torch.randint(0, len(features), (32,))
            projected = self.projector(features[chosen].float()).flatten(0, 1)
            loss = self.words.loss(projected, targets[chosen].flatten(0, 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 200 == 0:
                self.write_log(phase="warm-up", step=step, loss=loss.item())

    def _described(self, count: int) -> tuple[Tensor, Tensor]:
        """Return tower features in half precision and word targets, for pictures whose patches are known."""
        source = Mixture(self.mixture._easy, f"warm-up-{self.settings.seed}", vary=True)
        features, targets = [], []
        number = 0
        while len(targets) < count:
            pixels, labels = [], []
            while len(pixels) < 64:
                picture = source.picture(number)
                number += 1
                if picture.patch_words:
                    pixels.append(to_pixels(picture.image))
                    labels.append(self.words.targets(picture.patch_words))
            features.append(tower_features(self.tower, torch.stack(pixels)).half())
            targets += labels
        return torch.cat(features), torch.stack(targets)

    def next_rows(self) -> list[Row]:
        """Return the rows of one step."""
        rows: list[Row] = []
        while len(rows) < self.settings.rows:
            if self.rng.random() < self.settings.chat_share:
                rows.append(self._chat_row())
            else:
                rows += self._picture_row(self.mixture.picture(self.picture_number))
                self.picture_number += 1
        return rows

    def _yes_no_share(self) -> float:
        """Return the part of yes/no questions that is asked now.

        They say little until colors and shapes are read: few are asked in the first 30 % of the budget, all
        after 45 %.
        """
        share = self.elapsed / (60.0 * self.settings.minutes)
        return min(1.0, max(0.25, 0.25 + 5.0 * (share - 0.3)))

    def _picture_row(self, picture: Picture) -> list[Row]:
        keep = self._yes_no_share()
        asked = [q for q in picture.questions if not _is_yes_no(q.kind) or self.rng.random() < keep]
        segments = []
        while asked:
            turns = [asked.pop()]
            if asked and self.rng.random() < 0.08:
                turns.append(asked.pop())
            segments.append(self.packer.segment(turns))
        return self.packer.picture_rows(
            to_pixels(picture.image), segments, self.words.targets(picture.patch_words)
        )[:1]

    def _chat_row(self) -> Row:
        chosen: list[Segment] = []
        used = 0
        while True:
            dialog = self.rng.choice(self.dialogs)
            used += len(dialog.tokens) - 1
            if used > self.settings.length:
                return Row([], chosen, None)
            chosen.append(dialog)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss, tokens of long answers counting less, and every target's own loss."""
        projected = project(batch, self.tower, self.projector)
        embedded = embed(batch, self.language.embedding, projected)
        hidden = self.language(embedded, batch.positions, batch.mask)
        logits = hidden[batch.predict_at] @ self.language.embedding.t()
        each = F.cross_entropy(logits, batch.predict, reduction="none")
        lengths = torch.bincount(batch.segment_of, minlength=len(batch.kinds)).float()[batch.segment_of]
        weights = torch.where(lengths > 2, 0.5, 1.0) * lengths.clamp(max=8.0) / lengths
        loss = (each * weights).sum() / weights.sum()
        if projected is not None and len(batch.words):
            loss = loss + self.settings.word_weight * self.words.loss(
                projected.flatten(0, 1), batch.words.flatten(0, 1)
            )
        return loss, each.detach()

    def run(self) -> None:
        """Train until the budget is used, with a checkpoint every few minutes."""
        settings = self.settings
        factors = list(self.language.parameters())
        groups = [
            {"params": factors, "peak": settings.learning_rate},
            {"params": list(self.projector.parameters()), "peak": settings.projector_rate},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)
        self._resume(optimizer)
        parameters = [p for group in groups for p in group["params"]]
        batches, pool = self._prefetch(), ThreadPoolExecutor(settings.shards)
        began = self.step
        budget, last, saved = settings.minutes * 60, time.monotonic(), time.monotonic()
        sums: dict[str, list[float]] = {}
        while self.elapsed < budget:
            share = self.elapsed / budget
            factor = min(1.0, (self.step - began + 1) / 40) * (
                0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
            )
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            shards = batches.get()
            self._gradients(pool, shards, parameters, sums)
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            self.step += 1
            self.questions += sum(len(batch.kinds) for batch in shards)
            now = time.monotonic()
            self.elapsed += now - last
            last = now
            if self.step % 20 == 0:
                self._report(sums, float(norm), factor)
                sums = {}
            if now - saved > settings.checkpoint_seconds:
                self.checkpoint(optimizer)
                saved = time.monotonic()
        self.checkpoint(optimizer)

    def _report(self, sums: dict[str, list[float]], norm: float, factor: float) -> None:
        kinds = {kind: round(sum(v) / len(v), 3) for kind, v in sorted(sums.items())}
        everything = [value for values in sums.values() for value in values]
        self.write_log(
            phase="train", step=self.step, seconds=self.elapsed, questions=self.questions,
            loss=sum(everything) / len(everything), grad_norm=norm, rate=factor,
            per_second=self.questions / self.elapsed, kinds=kinds,
        )  # fmt: skip

    def _gradients(
        self,
        pool: ThreadPoolExecutor,
        shards: list[Batch],
        parameters: list[Tensor],
        sums: dict[str, list[float]],
    ) -> None:
        """Set every parameter's gradient to the mean over the shards, each computed on its own thread."""

        def work(batch: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            loss, each = self.loss(batch)
            return each, torch.autograd.grad(loss, parameters, allow_unused=True)

        list(pool.map(self.language.refresh, range(len(shards)), [len(shards)] * len(shards)))
        results = list(pool.map(work, shards))
        for number, parameter in enumerate(parameters):
            parts = [part for _, grads in results if (part := grads[number]) is not None]
            parameter.grad = torch.stack(parts).sum(0).div_(len(shards)) if parts else None
        for batch, (each, _) in zip(shards, results, strict=True):
            _collect(sums, batch, each)

    def _prefetch(self) -> queue.Queue[list[Batch]]:
        """Build batches on another thread, one for every shard of a step."""
        ready: queue.Queue[list[Batch]] = queue.Queue(maxsize=4)

        def work() -> None:
            while True:
                rows, parts = self.next_rows(), self.settings.shards
                ready.put([collate(rows[part::parts], self.settings.length) for part in range(parts)])

        threading.Thread(target=work, daemon=True).start()
        return ready

    def checkpoint(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the resumable state and the trained part, each under its name only when complete."""
        state = {
            "optimizer": optimizer.state_dict(), "language": self.language.state_dict(),
            "projector": self.projector.state_dict(), "step": self.step, "elapsed": self.elapsed,
            "picture_number": self.picture_number, "questions": self.questions,
            "calibration": self._calibrated(), "settings": asdict(self.settings),
        }  # fmt: skip
        torch.save(state, self.out / "state.partial")
        os.replace(self.out / "state.partial", self.out / "state.pt")
        save_trained_part(self.out, self.projector.plain_state(), self.language.low_rank(), self.calibration)
        self.write_log(phase="checkpoint", step=self.step, seconds=self.elapsed)

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        path = self.out / "state.pt"
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True)
        self.language.load_state_dict(state["language"])
        self.projector.load_state_dict(state["projector"])
        peaks = [group["peak"] for group in optimizer.param_groups]
        if state["optimizer"] is not None:
            optimizer.load_state_dict(state["optimizer"])
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.picture_number, self.questions = state["picture_number"] + 64, state["questions"]
        self.calibration = ImageCalibration(*state["calibration"])

    def _calibrated(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.calibration.mean, self.calibration.whitening


def _is_yes_no(kind: str) -> bool:
    return kind.endswith("yes/no")


def _collect(sums: dict[str, list[float]], batch: Batch, each: Tensor) -> None:
    for segment, value in zip(batch.segment_of.tolist(), each.tolist(), strict=True):
        sums.setdefault(batch.kinds[segment], []).append(value)
