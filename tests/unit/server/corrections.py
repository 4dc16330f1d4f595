"""A correction as the tests of feedback keep it."""

from __future__ import annotations

from server.feedback.corrections import Correction

PICTURE = b"the bytes of a picture"


def correction(right: str = "a cat", picture: str = "ab" * 32, since: float = 100.0) -> Correction:
    return Correction("What is shown?", right, picture, "a dog", "down", "v1", None, since)
