"""Pack many questions behind one shared picture, or many dialogs into one row.

A row is a prefix (the start of a user turn and the picture) followed by segments. A segment sees the prefix
and itself, its positions go on from the prefix: for the model each is a conversation of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapter_store.base.assemble import IMAGE_TOKEN_ID, IMAGE_TOKENS
from trainer_worker.pretrain.picture import Question

_END = 2
_CLOSED = -1e9


@dataclass(frozen=True, slots=True)
class Segment:
    """Hold one conversation after the prefix.

    Attributes:
        tokens: Input tokens and, last, the end token that is only ever a target.
        targets: For each token, whether the model is to predict it.
        kind: What it tests.
    """

    tokens: list[int]
    targets: list[bool]
    kind: str


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one row.

    Attributes:
        prefix: Tokens before the segments; image tokens included.
        segments: What follows, packed.
        pixels: `[3, 84, 84]` of the picture, or None.
        words: `[patches, words]` what each patch shows, rows of zeros where unknown; or None.
    """

    prefix: list[int]
    segments: list[Segment]
    pixels: Tensor | None
    words: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Hold rows of one length as tensors.

    Attributes:
        ids: `[rows, length]`.
        positions: `[rows, length]`.
        mask: `[rows, 1, length, length]` additive.
        pixels: `[pictures, 3, 84, 84]`.
        words: `[pictures, patches, words]`, empty if any picture has none.
        picture_rows: Rows that have a picture, in order.
        picture_start: Place of a picture's first token in its row.
        predict_at: Flat indices into `rows * length` whose next token is a target.
        predict: The targets.
        segment_of: For each target the number of its segment in `kinds`.
        kinds: Kind of every segment of the batch.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    pixels: Tensor
    words: Tensor
    picture_rows: Tensor
    picture_start: int
    predict_at: Tensor
    predict: Tensor
    segment_of: Tensor
    kinds: list[str]


class Packer:
    """Turn questions and dialogs into rows.

    Args:
        tokenizer: The base's tokenizer.
        length: Tokens per row.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self._tokenizer = tokenizer
        self.length = length
        self._open = self._encode("<|im_start|>user\n")
        self._between = self._encode("<|im_end|>\n<|im_start|>assistant\n")
        self._again = self._encode("\n<|im_start|>user\n")
        self.image_prefix = [*self._open, *[IMAGE_TOKEN_ID] * IMAGE_TOKENS, *self._encode("\n")]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def segment(self, turns: Sequence[Question]) -> Segment:
        """Encode one or more questions of one conversation with their answers."""
        tokens: list[int] = []
        targets: list[bool] = []
        for number, turn in enumerate(turns):
            asked = [*(self._again if number else []), *self._encode(turn.text), *self._between]
            answer = [*self._encode(turn.answer), _END]
            tokens += asked + answer
            targets += [False] * len(asked) + [True] * len(answer)
        return Segment(tokens, targets, turns[-1].kind)

    def picture_rows(
        self, pixels: Tensor, segments: Sequence[Segment], words: Tensor | None = None
    ) -> list[Row]:
        """Spread the segments of one picture over as many rows as they need."""
        rows: list[Row] = []
        room = self.length - len(self.image_prefix)
        packed: list[Segment] = []
        used = 0
        for segment in segments:
            need = len(segment.tokens) - 1
            if used + need > room and packed:
                rows.append(Row(self.image_prefix, packed, pixels, words))
                packed, used = [], 0
            if need <= room:
                packed.append(segment)
                used += need
        return [*rows, Row(self.image_prefix, packed, pixels, words)] if packed else rows

    def dialog(self, request: str, reply_tokens: Sequence[int]) -> Segment:
        """Encode one text-only exchange whose reply is given as tokens, end token included."""
        asked = [*self._open, *self._encode(request), *self._between]
        tokens = [*asked, *reply_tokens]
        return Segment(tokens, [False] * len(asked) + [True] * len(reply_tokens), "chat")


def collate(rows: Sequence[Row], length: int) -> Batch:
    """Lay rows out as tensors of a fixed length."""
    ids = torch.full((len(rows), length), _END)
    positions = torch.zeros(len(rows), length)
    owner = torch.full((len(rows), length), -2)
    at: list[int] = []
    predict: list[int] = []
    segment_of: list[int] = []
    kinds: list[str] = []
    for number, row in enumerate(rows):
        cursor = len(row.prefix)
        ids[number, :cursor] = torch.tensor(row.prefix, dtype=torch.long)
        positions[number, :cursor] = torch.arange(cursor)
        owner[number, :cursor] = -1
        for index, segment in enumerate(row.segments):
            count = len(segment.tokens) - 1
            ids[number, cursor : cursor + count] = torch.tensor(segment.tokens[:-1])
            positions[number, cursor : cursor + count] = torch.arange(count) + len(row.prefix)
            owner[number, cursor : cursor + count] = index
            for step in range(1, count + 1):
                if segment.targets[step]:
                    at.append(number * length + cursor + step - 1)
                    predict.append(segment.tokens[step])
                    segment_of.append(len(kinds))
            kinds.append(segment.kind)
            cursor += count
    pictured = [number for number, row in enumerate(rows) if row.pixels is not None]
    pixels = [row.pixels for row in rows if row.pixels is not None]
    words = [row.words for row in rows if row.words is not None]
    return Batch(
        ids=ids,
        positions=positions,
        mask=_block_mask(owner),
        pixels=torch.stack(pixels) if pixels else torch.zeros(0, 3, 84, 84),
        words=torch.stack(words) if words and len(words) == len(pixels) else torch.zeros(0),
        picture_rows=torch.tensor(pictured, dtype=torch.long),
        picture_start=rows[pictured[0]].prefix.index(IMAGE_TOKEN_ID) if pictured else 0,
        predict_at=torch.tensor(at),
        predict=torch.tensor(predict),
        segment_of=torch.tensor(segment_of),
        kinds=kinds,
    )


def _block_mask(owner: Tensor) -> Tensor:
    """Let a token see the prefix and earlier tokens of its own segment.

    Args:
        owner: `[rows, length]` segment number; -1 prefix, -2 padding.
    """
    length = owner.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = owner.unsqueeze(2) == owner.unsqueeze(1)
    visible = (same | (owner == -1).unsqueeze(1)) & causal
    return torch.zeros(visible.shape).masked_fill_(~visible, _CLOSED).unsqueeze(1)
