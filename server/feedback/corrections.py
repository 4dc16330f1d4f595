"""One correction as it is kept: a question about a picture, and the right answer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any


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
    def of(cls, data: dict[str, Any]) -> Correction:
        """Rebuild a correction; raise TypeError or KeyError if the data is another's."""
        return cls(**data)


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
