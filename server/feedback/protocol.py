"""Feedback as HTTP shows it: what may be sent, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapter_store.datasets.records import Limits
from adapter_store.errors import InputError
from adapter_store.names import check_task_name, check_version_id

_LIMITS = Limits()
_REQUEST_ID = r"^[A-Za-z0-9._-]{1,64}$"


def _named(value: str | None) -> str | None:
    return value if value is None else _said(check_task_name, value)


def _versioned(value: str | None) -> str | None:
    return value if value is None else _said(check_version_id, value)


def _said(check: Any, value: str) -> str:
    try:
        return check(value)
    except InputError as error:
        raise ValueError(error.message) from None


def _filled(value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise ValueError("it is empty; write the right answer, or leave it out to give a thumb only")
    return value


def _inline(value: str | None) -> str | None:
    if value is not None and value[:5].lower() != "data:":
        raise ValueError("the picture must be a data: URL, as in data:image/png;base64,...")
    return value


class Feedback(BaseModel):
    """Rate an answer, and say the right one if it was wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rating: Literal["up", "down"]
    question: str = Field(default="", max_length=_LIMITS.max_question_chars)
    image: Annotated[str | None, AfterValidator(_inline)] = None
    answer: str = Field(default="", max_length=_LIMITS.max_question_chars * 4)
    correction: Annotated[str | None, Field(max_length=_LIMITS.max_answer_chars), AfterValidator(_filled)] = (
        None
    )
    task: Annotated[str | None, AfterValidator(_named)] = None
    version: Annotated[str | None, AfterValidator(_versioned)] = None
    request_id: Annotated[str | None, Field(pattern=_REQUEST_ID)] = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.correction is not None:
            missing = [name for name in ("question", "image") if not (str(getattr(self, name) or "")).strip()]
            if missing:
                text = f"a correction needs the question and the picture; missing: {', '.join(missing)}"
                raise ValueError(text)
        return self


def parsed(body: dict[str, Any]) -> Feedback:
    """Return a body as feedback; raise RequestValidationError with every fault of it."""
    try:
        return Feedback.model_validate(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from None


def feedback_body(
    identity: str, given: Feedback, task: str | None, pending: dict[str, Any], job: str | None
) -> dict[str, Any]:
    """Return what became of one feedback."""
    waiting = "pending" if job is None else "queued"
    return {
        "id": identity,
        "object": "feedback",
        "rating": given.rating,
        "task": task,
        "status": "noted" if given.correction is None else waiting,
        "job": job,
        "pending": pending,
    }
