"""Chat completions as the OpenAI API writes them: what is read, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from adapter_store.jobs.hyperparameters import Number, Whole
from server.openapi import PICTURE_EXAMPLE

_IGNORED_QUIETLY = frozenset(
    {"user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier"}
)
_MAX_TEXT = 4_000_000


class TextPart(BaseModel):
    """A piece of text."""

    type: Literal["text"]
    text: str = Field(max_length=_MAX_TEXT)


class ImageUrl(BaseModel):
    """Where a picture is: a data: URL, or http(s) of a listed host."""

    url: str
    detail: str | None = Field(default=None, max_length=20)


class ImagePart(BaseModel):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _part_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"as-{kind}"


def _content_kind(value: Any) -> str:
    return {str: "as-words", list: "as-parts", type(None): "as-nothing"}.get(type(value), "")


Part = Annotated[
    Annotated[TextPart, Tag("as-text")] | Annotated[ImagePart, Tag("as-image_url")],
    Discriminator(
        _part_kind,
        custom_error_type="unknown_part",
        custom_error_message="a content part has type 'text' or 'image_url'",
    ),
]

Content = Annotated[
    Annotated[str, Tag("as-words"), Field(max_length=_MAX_TEXT)]
    | Annotated[list[Part], Tag("as-parts")]
    | Annotated[None, Tag("as-nothing")],
    Discriminator(
        _content_kind,
        custom_error_type="unknown_content",
        custom_error_message="content is a text or a list of parts",
    ),
]
"""Text, parts or nothing; the tags keep faults from being reported once for each alternative."""


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = None


class StreamOptions(BaseModel):
    """What a stream carries besides the text."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool = False


class ChatRequest(BaseModel):
    """Ask for the next turn of a conversation; unknown fields are ignored with one warning."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "model": "strata",
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "Which digit is it?"},
                            {
                                "type": "image_url",
                                "image_url": {"url": PICTURE_EXAMPLE},
                            },
                        ],
                    }
                ],
                "max_tokens": 32,
            }
        },
    )

    model: str = Field(max_length=200)
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Whole | None = Field(default=None, ge=1, le=2**31)
    max_completion_tokens: Whole | None = Field(default=None, ge=1, le=2**31)
    temperature: Number | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: Number | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    stop: str | list[str] | None = None
    seed: Whole | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: Whole | None = Field(default=None, ge=1)
    frequency_penalty: Number | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: Number | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(default=None, ge=0)

    def ignored_fields(self) -> list[str]:
        """Return the names of set fields that have no effect here."""
        extra = {name for name, value in (self.model_extra or {}).items() if value not in (None, [], {})}
        return sorted(name for name in extra - _IGNORED_QUIETLY if name.isidentifier() and name.isascii())[
            :16
        ]


def chunk_body(
    head: dict[str, Any], choices: list[dict[str, Any]], usage: dict[str, Any] | None
) -> dict[str, Any]:
    """Return one streamed chunk."""
    body = {**head, "object": "chat.completion.chunk", "choices": choices}
    return body if usage is None else {**body, "usage": usage}


def choice_delta(
    index: int,
    delta: dict[str, Any],
    finish_reason: str | None = None,
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return one choice of a chunk."""
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def usage_body(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> dict[str, Any]:
    """Return the token counts of one request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
