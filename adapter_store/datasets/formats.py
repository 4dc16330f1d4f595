"""Bring one record of any accepted layout into one form, and note what is wrong with it.

Layouts: LLaVA (``conversations`` + ``image``), ShareGPT and LLaMA-Factory
(``conversations`` or ``messages`` + ``images``), OpenAI (``messages`` whose
content parts hold ``image_url``) and plain examples (``question``, ``answer``,
``image``, under any of their usual names), the instructions of LLaMA-Factory
(``instruction``, ``input``, ``output``, ``history``) and the pairs of the Cauldron
(``texts``) among them. Pictures are only referred to here; nothing is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapter_store.datasets.columns import columns_of
from adapter_store.datasets.plain import ONE_FOR_ALL, Message, Note, paired_messages, plain_messages
from adapter_store.datasets.records import Limits, Part, Turn, shown
from adapter_store.datasets.splits import part_of
from adapter_store.texts import IMAGE_MARK as MARK
from adapter_store.texts import join_parts, strip_image_marks

ACCEPTED = (
    "LLaVA (conversations, image), ShareGPT (conversations or messages, images), "
    "OpenAI (messages with image_url), plain examples or a table (question, answer, image)"
)
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
          "chatgpt": "assistant", "system": "system", "developer": "system"}  # fmt: skip
_TALKS = ("conversations", "messages", "texts")
_CONTROL = {chr(code) for code in range(32)} - {"\n", "\t", "\r"}


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture as a record names it: a path, data: URL, base64 text or parquet struct."""

    field: str
    value: Any


@dataclass(frozen=True, slots=True)
class Draft:
    """One record in the common form, without its picture.

    ``layouts`` are the layouts that the record could belong to.
    """

    id: str | None
    turns: tuple[Turn, ...]
    layouts: frozenset[str]
    has_system: bool
    split: Part | None


def normalize(
    record: Any, limits: Limits, note: Note, question: str | None = None
) -> tuple[Draft | None, Reference | None]:
    """Return the draft of a record, or None after noting every fault as (field, reason), and its picture.

    The picture is not looked at, and is named even if the draft is None: it may have a fault as well.
    ``question`` is asked by a plain record that has none.
    """
    if not isinstance(record, dict):
        note("", f"a record must be an object with named fields; accepted are {ACCEPTED}")
        return None, None
    faults = 0

    def counted(field: str, reason: str) -> None:
        nonlocal faults
        faults += 1
        note(field, reason)

    for kind in ("videos", "audios", "video", "audio"):
        if record.get(kind):
            counted(kind, "only pictures and text can be trained on")
    columns = columns_of(record)
    references = _top_references(record, columns)
    layouts, messages = _messages(record, columns, references, question, counted)
    split, reason = part_of(record.get(columns.get("split", "split")))
    if reason is not None:
        counted(columns["split"], reason)
    if messages is None:
        return None, references[0] if references and layouts else None
    identity = _identity(record, counted)
    plain = "examples" in layouts
    _check_marks(messages, references, plain, counted)
    turns, has_system = _pair(messages, limits, counted)
    picture = references[0] if references else None
    has_system = has_system or bool(record.get("system"))
    return None if faults else Draft(identity, turns, layouts, has_system, split), picture


def _top_references(record: dict[str, Any], columns: dict[str, str]) -> list[Reference]:
    references: list[Reference] = []
    # Only plain records name their picture as they like: in others "path" or "file" may be anything.
    is_plain = not any(record.get(key) is not None for key in _TALKS)
    for field in dict.fromkeys((columns.get("image", "image") if is_plain else "image", "images")):
        value = record.get(field)
        if isinstance(value, list):
            references += [Reference(f"{field}[{i}]", item) for i, item in enumerate(value) if item]
        elif value:
            references.append(Reference(field, value))
    return references


def _messages(
    record: dict[str, Any],
    columns: dict[str, str],
    references: list[Reference],
    question: str | None,
    note: Note,
) -> tuple[frozenset[str], list[Message] | None]:
    for key in ("conversations", "messages"):
        value = record.get(key)
        if value is None:
            continue
        if not isinstance(value, list) or not value:
            note(key, "must be a list of messages that is not empty")
            return _layouts(key, record, []), None
        found = [_message(item, f"{key}[{i}]", references, note) for i, item in enumerate(value)]
        messages = [message for message in found if message is not None]
        layouts = _layouts(key, record, value)
        return layouts, messages if len(messages) == len(found) else None
    if record.get("texts") is not None:
        return frozenset({"examples"}), paired_messages(record["texts"], "texts", ("user", "assistant"), note)
    if "question" in columns or "answer" in columns:
        return frozenset({"examples"}), plain_messages(record, columns, question, note)
    names = ", ".join(shown(str(name), 24) for name in list(record)[:6]) or "none"
    note("", f"the layout is not known (fields: {names}); accepted are {ACCEPTED}")
    return frozenset(), None


def _layouts(key: str, record: dict[str, Any], messages: list[Any]) -> frozenset[str]:
    parts = [item.get("content") for item in messages if isinstance(item, dict)]
    has_parts = any(isinstance(content, list) for content in parts)
    if record.get("images"):
        return frozenset({"sharegpt"})
    if record.get("image"):
        return frozenset({"llava"})
    if key == "conversations":
        return frozenset({"llava", "sharegpt"})
    return frozenset({"openai"}) if has_parts else frozenset({"openai", "sharegpt"})


def _message(item: Any, field: str, references: list[Reference], note: Note) -> Message | None:
    if not isinstance(item, dict):
        note(field, "a message must be an object")
        return None
    role_key, text_key = ("from", "value") if "from" in item else ("role", "content")
    role = _ROLES.get(str(item.get(role_key)).lower())
    if role is None:
        given = shown(str(item.get(role_key)), 24)
        note(f"{field}.{role_key}", f'unknown speaker "{given}"; use human and gpt, or user and assistant')
        return None
    content = item.get(text_key)
    where = f"{field}.{text_key}"
    if isinstance(content, str):
        return Message(role, where, strip_image_marks(content), content.count(MARK))
    if isinstance(content, list):
        return _parts(role, where, content, references, note)
    note(where, "the text is missing" if content is None else "must be text or a list of parts")
    return None


def _parts(
    role: str, field: str, parts: list[Any], references: list[Reference], note: Note
) -> Message | None:
    message = Message(role, field, "", 0)
    texts: list[str] = []
    for index, part in enumerate(parts):
        where = f"{field}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
            message.marks += part["text"].count(MARK)
        elif kind in ("image_url", "image", "input_image"):
            message.marks += 1
            value = next((part[key] for key in ("image_url", "image", "url") if part.get(key)), None)
            if value is not None:
                references.append(Reference(where, value))
            elif kind != "image":
                note(where, "the picture's URL is missing")
                return None
        else:
            note(where, f'a part of type "{shown(str(kind), 24)}" is not read; use text and image_url')
            return None
    message.text = strip_image_marks(join_parts(texts))
    return message


def _identity(record: dict[str, Any], note: Note) -> str | None:
    value = record.get("id")
    if value is None or value == "":
        return None
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        text = str(value)
        if len(text) <= 256 and text.isprintable():
            return text
    note("id", "must be a printable text of at most 256 characters, or a whole number")
    return None


def _check_marks(messages: list[Message], references: list[Reference], plain: bool, note: Note) -> None:
    marks = sum(message.marks for message in messages)
    if len(references) > 1:
        note(references[1].field, f"{len(references)} pictures in one example; one is accepted: split it")
    elif marks != len(references) and not (plain and marks == 0):
        reason = f"{marks} {MARK} marks but {len(references)} pictures; write one mark for each picture"
        note(messages[0].field, reason)
    first = next((message for message in messages if message.role == "user"), None)
    for message in messages:
        if message.marks and message.role != "user":
            note(message.field, f"{MARK} belongs in a question, not here")
        elif message.marks and message is not first:
            note(message.field, "the picture must come with the first question")


def _pair(messages: list[Message], limits: Limits, note: Note) -> tuple[tuple[Turn, ...], bool]:
    has_system = messages[0].role == "system"
    spoken = messages[1:] if has_system else messages
    for index, message in enumerate(spoken):
        expected = "user" if index % 2 == 0 else "assistant"
        if message.role != expected:
            wanted = "a question" if expected == "user" else "an answer"
            note(message.field, f"{wanted} must come here, not a message of the {message.role}")
            return (), has_system
    if not any(message.role == "assistant" for message in spoken):
        note(messages[-1].field, "the example has no answer")
        return (), has_system
    if len(spoken) % 2:
        note(spoken[-1].field, "the last question has no answer")
    if len(spoken) > 2 * limits.max_turns:
        note(spoken[-1].field, f"{len(spoken) // 2} turns; at most {limits.max_turns} are accepted")
        return (), has_system
    texts = [_text(message, limits, note) for message in spoken]
    return tuple(Turn(*pair) for pair in zip(texts[0::2], texts[1::2], strict=False)), has_system


def _text(message: Message, limits: Limits, note: Note) -> str:
    text = message.text.strip()
    what = "question" if message.role == "user" else "answer"
    most = limits.max_question_chars if what == "question" else limits.max_answer_chars
    if not text:
        is_plain_question = what == "question" and "[" not in message.field
        note(message.field, f"the {what} is empty{f'; {ONE_FOR_ALL}' if is_plain_question else ''}")
    elif len(text) > most:
        note(message.field, f"the {what} has {len(text)} characters; at most {most} are accepted")
    elif not text.isprintable() and _CONTROL.intersection(text):
        note(message.field, f"the {what} holds a NUL or another control character")
    elif not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        note(message.field, f"the {what} holds half of a surrogate pair, which is no character")
    return text
