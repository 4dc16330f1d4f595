"""How a message's text comes from its parts and marks, and how things are counted in words."""

from __future__ import annotations

from collections.abc import Iterable

IMAGE_MARK = "<image>"


def strip_image_marks(text: str) -> str:
    """Return ``text`` without image marks and the white space around them."""
    if IMAGE_MARK not in text:
        return text
    return " ".join(part.strip() for part in text.split(IMAGE_MARK) if part.strip())


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: ``1 example``, ``2,000 examples``; ``many`` where an s does not do."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def join_parts(parts: Iterable[str]) -> str:
    """Return the text of a message given in parts: one line for each part."""
    return "\n".join(parts)
