"""Turn plain records, one question and one answer each, into messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adapter_store.texts import IMAGE_MARK, strip_image_marks

Note = Callable[[str, str], None]
"""Notes a fault: the field, and the reason."""

ONE_FOR_ALL = "write one in each record, or give one for all of them with the file"
NO_QUESTION = f"there is no question; {ONE_FOR_ALL}"
"""Said where no field is one for questions; one that is there and holds none has a fault of its own."""


@dataclass(slots=True)
class Message:
    """What one side says: its role, the field it comes from, its text, and the image marks it had."""

    role: str
    field: str
    text: str
    marks: int


def plain_messages(
    record: Mapping[str, Any], columns: Mapping[str, str], question: str | None, note: Note
) -> list[Message] | None:
    """Return the messages of a record with a question and an answer, or None after noting its faults.

    Args:
        record: the record.
        columns: which of its fields serves as what (``columns_of``).
        question: asked if no field serves as the question, or the one that does is blank.
        note: called for each fault.
    """
    earlier = paired_messages(record.get("history") or [], "history", (0, 1), note)
    asked, answered = columns.get("question"), columns.get("answer", "answer")
    own = record.get(asked) if asked else None
    more = record.get("input") if asked == "instruction" else None
    if question is not None and _is_blank(own) and _is_blank(more):
        own = question
    texts = [
        _text("question", asked, own, note),
        _text("answer", answered, record.get(answered), note),
    ]
    if earlier is None or texts[0] is None or texts[1] is None:
        return None
    if isinstance(more, str) and more.strip():
        texts[0] = f"{texts[0]}\n{more}"
    pair = zip(("user", "assistant"), (asked or "question", answered), texts, strict=True)
    return earlier + [message(role, field, text or "") for role, field, text in pair]


def paired_messages(value: Any, field: str, keys: tuple[Any, Any], note: Note) -> list[Message] | None:
    """Return the messages of a list of question-answer pairs, or None after noting its faults.

    ``keys`` say where in a pair its question and its answer are.
    """
    if not isinstance(value, list):
        note(field, "must be a list of questions with their answers")
        return None
    messages: list[Message] = []
    for index, pair in enumerate(value):
        for role, key in zip(("user", "assistant"), keys, strict=True):
            text = _at(pair, key)
            if not isinstance(text, str):
                note(f"{field}[{index}]", "must hold a question and its answer, both as text")
                return None
            messages.append(message(role, f"{field}[{index}]", text))
    if field == "texts" and not messages:
        note(field, "must be a list of questions with their answers that is not empty")
        return None
    return messages


def message(role: str, field: str, text: str) -> Message:
    """Return the message that a text with its image marks is."""
    return Message(role, field, strip_image_marks(text), text.count(IMAGE_MARK))


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _at(pair: Any, key: Any) -> Any:
    if isinstance(pair, dict):
        return pair.get(key)
    is_pair = isinstance(pair, list) and len(pair) == 2 and isinstance(key, int)
    return pair[key] if is_pair else None


def _text(what: str, field: str | None, value: Any, note: Note) -> str | None:
    if field is None and value is None:
        note(what, NO_QUESTION)
        return None
    field = field or what
    if isinstance(value, (int, float)) and not isinstance(value, bool) and what == "answer":
        if isinstance(value, float) and not math.isfinite(value):
            note(field, f"the answer is the number {value}; write a finite number, or text in quotes")
            return None
        return str(value)
    if isinstance(value, str):
        return value
    missing = f"the {what} is missing{f'; {ONE_FOR_ALL}' if what == 'question' else ''}"
    note(field, missing if value is None else f"the {what} must be text")
    return None
