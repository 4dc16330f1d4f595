"""One correction as it is kept: a question about a picture, and the right answer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

_TEXT, _PERHAPS = (str,), (str, type(None))
_KINDS: dict[str, tuple[type, ...]] = {
    "question": _TEXT,
    "right": _TEXT,
    "picture": _TEXT,
    "answer": _TEXT,
    "rating": _TEXT,
    "version": _PERHAPS,
    "request_id": _PERHAPS,
    "since": (int, float),
}


@dataclass(frozen=True, slots=True)
class Correction:
    """What somebody says the answer is.

    Attributes:
        question: as it was asked.
        right: the right answer.
        picture: sha256 of the picture's pixels, as hex.
        answer: what was answered.
        rating: ``up`` or ``down``.
        version: what answered, if that is known.
        request_id: of the request that was answered, if that is known.
        since: when this question about this picture was first corrected, in seconds since 1970.
    """

    question: str
    right: str
    picture: str
    answer: str
    rating: str
    version: str | None
    request_id: str | None
    since: float

    @property
    def key(self) -> str:
        """Return what names the question about the picture: a later correction of it replaces the earlier."""
        return _digest(self.picture, self.question)

    @property
    def id(self) -> str:
        """Return the id of the feedback: the same correction has the same."""
        return f"fb-{_digest(self.picture, self.question, self.right)}"

    def line(self) -> bytes:
        """Return the JSON that is kept on disk."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()

    @classmethod
    def of(cls, data: Any) -> Correction:
        """Rebuild a correction; fields that a later release added are ignored.

        Raises:
            TypeError: it is no object.
            ValueError: a field is missing or of another type.
        """
        values: dict[str, Any] = {name: dict(data).get(name) for name in _KINDS}
        wrong = [name for name, value in values.items() if not isinstance(value, _KINDS[name])]
        if wrong:
            raise ValueError(f"missing or of another type: {', '.join(wrong)}")
        return cls(**values)


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
