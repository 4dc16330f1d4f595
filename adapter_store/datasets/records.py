"""What a data set is made of: examples, faults, limits and the report.

Plain frozen records, shared by the readers of every upload format and by the
store. Nothing here reads a file.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePath
from typing import Any, Literal

from adapter_store.datasets.luck import Measuring
from adapter_store.texts import counted

_ELEMENT = re.compile(r"\[(\d+)\]")
MIB = 1024 * 1024
GIB = 1024 * MIB

Part = Literal["train", "test"]
CountTokens = Callable[[Sequence[str]], Sequence[int]]
"""Returns how many tokens each text has."""
Tell = Callable[[str, int, int], None]
"""Is told what is under way, how many of its steps are done, and how many there are (0: not known)."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and the answer that is wanted."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation about at most one picture.

    ``image`` names a picture of the upload or of the stored data set, or is None
    for text alone. The turns carry no ``<image>`` marks: the picture belongs to
    the first question. ``split`` is the part that whoever made the data chose for it:
    what is "test" is measured on and never trained on; None leaves the choice to us.
    """

    id: str
    image: str | None
    turns: tuple[Turn, ...]
    split: Part | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that ``examples.jsonl`` keeps, one per line."""
        turns = [{"question": turn.question, "answer": turn.answer} for turn in self.turns]
        given = {} if self.split is None else {"split": self.split}
        return {"id": self.id, "image": self.image, "turns": turns, **given}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Example:
        """Rebuild an example from its JSON form."""
        turns = tuple(Turn(turn["question"], turn["answer"]) for turn in data["turns"])
        return cls(data["id"], data["image"], turns, data.get("split"))


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with an upload: where it is and what to do about it.

    ``line`` counts from 1: the line of a text file, the row of a parquet file,
    None when the whole upload is meant. ``file`` is the archive member, if any.
    """

    line: int | None
    field: str
    reason: str
    file: str | None = None

    @property
    def element(self) -> int | None:
        """The index of the record in a JSON array, where ``field`` begins with one (``[3].image``)."""
        found = _ELEMENT.match(self.field)
        return int(found[1]) if found else None

    def __str__(self) -> str:
        place = [self.file or "", f"line {self.line}" if self.line is not None else "", self.field]
        where = ", ".join(part for part in place if part)
        return f"{where}: {self.reason}" if where else self.reason


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what an upload may cost, in bytes, pixels, characters, counts and seconds.

    ``max_expansion`` is the allowed ratio of unpacked to packed bytes of an
    archive; it applies once ``free_expansion_bytes`` are unpacked. ``max_pixels_per_byte``
    is the same for the pixels of all pictures and the bytes that were sent, once there are
    ``free_pixels``: photographs have 2 to 40, drawings in few colors up to some hundreds, an empty
    PNG 8,000. ``max_text_bytes`` bounds questions, answers and ids as they are held in memory.
    """

    max_upload_bytes: int = 2 * GIB
    max_total_bytes: int = 4 * GIB
    max_members: int = 200_000
    max_expansion: float = 100.0
    free_expansion_bytes: int = 64 * MIB
    max_record_bytes: int = 32 * MIB
    max_examples: int = 200_000
    max_image_bytes: int = 20 * MIB
    max_image_pixels: int = 40_000_000
    max_total_pixels: int = 100_000_000_000
    max_pixels_per_byte: int = 1_000
    free_pixels: int = 256_000_000
    max_text_bytes: int = 512 * MIB
    max_question_chars: int = 8_000
    max_answer_chars: int = 2_000
    max_turns: int = 32
    max_faults: int = 200
    max_seconds: float = 3600.0

    @classmethod
    def of_uploads(cls, max_upload_bytes: int) -> Limits:
        """Return the limits of a server that takes uploads of this size.

        Unpacked they may be twice that; their pixels and their time grow with it, their text does not.
        """
        usual = cls()
        larger = max(1.0, max_upload_bytes / usual.max_upload_bytes)
        return cls(
            max_upload_bytes=max_upload_bytes,
            max_total_bytes=int(usual.max_total_bytes * larger),
            max_total_pixels=int(usual.max_total_pixels * larger),
            max_seconds=usual.max_seconds * larger,
        )


def _silent(_title: str, _done: int, _total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Context:
    """What is known beside the upload itself.

    ``question`` is asked where the data has none. ``held_out`` has, for every task, the
    keys (see ``picture_key``) of what it is measured on; ``task`` is the one that the
    data is for, None if it is not known. ``measuring`` is how the worker will measure it.
    """

    question: str | None = None
    task: str | None = None
    held_out: Mapping[str, frozenset[str]] = field(default_factory=dict)
    count_tokens: CountTokens | None = None
    measuring: Measuring = field(default_factory=Measuring)
    tell: Tell = _silent


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long texts of one kind are, in the report's ``length_unit``."""

    median: int = 0
    p95: int = 0
    longest: int = 0


@dataclass(frozen=True, slots=True)
class Division:
    """Examples and pictures in each part; ``given`` says whether the data names a test part itself.

    If it does not, the trainer holds some pictures of the train part back for measuring.
    """

    given: bool = False
    train_examples: int = 0
    train_images: int = 0
    test_examples: int = 0
    test_images: int = 0


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many pictures (or questions without one) another task is measured on, too."""

    task: str
    images: int


@dataclass(frozen=True, slots=True)
class Report:
    """What validation found in an upload.

    ``faults`` refuse the upload, ``warnings`` do not. Both lists are capped;
    ``truncated_faults`` says how many more faults there are. ``answers`` are the different
    ones; with ``answers_truncated`` there are more, and those were not counted. Lengths are counted in
    tokens of the base if its tokenizer is at hand, else in characters.
    """

    format: str = "unknown"
    faults: tuple[Fault, ...] = ()
    truncated_faults: int = 0
    warnings: tuple[Fault, ...] = ()
    examples: int = 0
    turns: int = 0
    images: int = 0
    image_bytes: int = 0
    answers: int = 0
    answers_truncated: bool = False
    answer_histogram: tuple[tuple[str, int], ...] = ()
    duplicates: int = 0
    length_unit: Literal["tokens", "characters"] = "characters"
    question_lengths: Lengths = Lengths()
    answer_lengths: Lengths = Lengths()
    split: Division = Division()
    overlap: tuple[Overlap, ...] = ()

    @property
    def ok(self) -> bool:
        """Say whether the upload can be stored."""
        return not self.faults

    def summary(self) -> str:
        """Describe the outcome in one line for an error message or a log."""
        total = len(self.faults) + self.truncated_faults
        if total == 0:
            least = "at least " * self.answers_truncated
            return (
                f"{counted(self.examples, 'example')}, {counted(self.images, 'image')}, "
                f"{least}{counted(self.answers, 'distinct answer')} ({self.format})"
            )
        first = "; ".join(str(fault) for fault in self.faults[:3])
        more = f"; and {total - 3} more" if total > 3 else ""
        return f"the data set has {counted(total, 'fault')}: {first}{more}"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with ``ok`` and ``summary`` for people."""
        data = asdict(self)
        data["answer_histogram"] = [{"answer": text, "count": n} for text, n in self.answer_histogram]
        return {"ok": self.ok, "summary": self.summary(), **data}


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """Name a stored data set; ``digest`` is the sha256 over its normalized content."""

    id: str
    examples: int
    images: int
    digest: str


@dataclass(slots=True)
class FaultList:
    """Collect faults up to a cap and count the rest."""

    limit: int
    faults: list[Fault] = field(default_factory=list)
    truncated: int = 0
    _of_rows: dict[tuple[str, str, str | None], tuple[int, int]] = field(default_factory=dict)

    def add(self, line: int | None, field: str, reason: str, file: str | None = None) -> None:
        """Note one fault."""
        if len(self.faults) < self.limit:
            self.faults.append(Fault(line, field, reason, shown(file) if file else None))
        else:
            self.truncated += 1

    def add_of_row(self, _: int | None, field: str, reason: str, file: str | None = None) -> None:
        """Note what all rows of a table share: one fault, which says how many they are."""
        place, rows = self._of_rows.get((field, reason, file), (len(self.faults), 0))
        self._of_rows[field, reason, file] = place, rows + 1
        if rows == 0:
            self.add(None, field, reason, file)
        if place < len(self.faults):
            said = f"in {counted(rows + 1, 'row')} {reason}"
            self.faults[place] = replace(self.faults[place], reason=said)

    def in_order(self) -> tuple[Fault, ...]:
        """Return the faults file by file and line by line; those of a whole file come first.

        Pictures are looked at after all records, so their faults are noted last.
        """
        return tuple(sorted(self.faults, key=_place))

    def __len__(self) -> int:
        return len(self.faults) + self.truncated


def _place(fault: Fault) -> tuple[str, int, int]:
    return fault.file or "", fault.line or 0, fault.element or 0


def shown(text: str, limit: int = 80) -> str:
    """Quote text from an upload so that it is short and holds no control characters."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    if cut.isprintable():
        return cut
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in cut)


def example_line(example: Example) -> bytes:
    """Return the canonical JSON line of an example, UTF-8 with its newline."""
    return json.dumps(example.to_dict(), ensure_ascii=False, sort_keys=True).encode() + b"\n"


def bytes_held(example: Example) -> int:
    """Return the memory that an example's texts take: up to four bytes a character, and their headers."""
    texts = [example.id, *(text for turn in example.turns for text in (turn.question, turn.answer))]
    return sum(map(sys.getsizeof, texts))


def distinct_images(examples: Iterable[Example]) -> set[str]:
    """Return the names of the pictures that the examples use."""
    return {example.image for example in examples if example.image is not None}


def picture_key(example: Example) -> str:
    """Return the hash that decides an example's side: its picture's pixels, or its first question.

    Stored pictures are named by the sha256 of their pixels.
    """
    if example.image is not None:
        return PurePath(example.image).stem
    return hashlib.sha256(b"text:" + example.turns[0].question.encode()).hexdigest()
