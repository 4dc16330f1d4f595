"""Requests that move aliases."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

_REASON = "asked for over HTTP"


class MoveAlias(BaseModel):
    """Name the version an alias shall point at."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"version": "v3", "reason": "looks good in review"}}
    )

    version: str = Field(max_length=20)
    reason: str = Field(default=_REASON, min_length=1, max_length=500)
    weight: float | None = Field(
        default=None,
        ge=0,
        le=1,
        strict=True,
        allow_inf_nan=False,
        description="share of the plain name's requests, for canary and shadow; without it they get none",
    )


class RollBack(BaseModel):
    """Name the alias to move back."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"alias": "stable"}})

    alias: str = Field(default="stable", max_length=63)
    reason: str = Field(default=_REASON, min_length=1, max_length=500)
