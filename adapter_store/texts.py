"""How a message's text comes from its parts and marks: one way for data sets and for requests."""

from __future__ import annotations

from collections.abc import Iterable

IMAGE_MARK = "<image>"


def strip_image_marks(text: str) -> str:
    """Return ``text`` without image marks and the white space around them."""
    if IMAGE_MARK not in text:
        return text
    return " ".join(part.strip() for part in text.split(IMAGE_MARK) if part.strip())


def join_parts(parts: Iterable[str]) -> str:
    """Return the text of a message given in parts: one line for each part."""
    return "\n".join(parts)
