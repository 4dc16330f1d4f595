"""What promotes or ends a canary, and what HTTP shows of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from adapter_store.versions import AliasRecord
from server.canary.rule import SLOW_SHARE, Rule
from server.canary.tally import Tally, quantile

EXAMPLE = {
    "canary": {"version": "v4", "weight": 0.1, "revision": 7, "answering": True, "reason": None},
    "shadow": None,
    "versions": [
        {
            "slot": "stable",
            "version": "v3",
            "requests": 912,
            "errors": 0,
            "error_ratio": 0.0,
            "p50_seconds": 0.21,
            "p95_seconds": 0.48,
            "p95_first_token_seconds": 0.12,
            "p95_token_seconds": 0.02,
            "thumbs_up": 12,
            "thumbs_down": 1,
        }
    ],
    "agreement": None,
    "rule": asdict(Rule()),
    "rule_in_words": Rule().in_words(),
    "last_end": None,
}
DECIDED_EXAMPLE = {"decision": "promoted", "version": "v4", "reason": "looks good", "canary": None}


class Decide(BaseModel):
    """Say why a canary is promoted or rolled back."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"reason": "looks good"}})

    reason: str = Field(default="asked for over HTTP", min_length=1, max_length=500)


def part_body(record: AliasRecord, why_not: str | None) -> dict[str, Any]:
    """Return a canary or shadow; ``why_not`` says why it takes no share now, None that it does."""
    return {
        "version": record.version,
        "weight": record.weight,
        "revision": record.revision,
        "moved_at": record.moved_at,
        "answering": why_not is None,
        "reason": why_not,
    }


def version_body(slot: str, version: str, tally: Tally) -> dict[str, Any]:
    """Return what was seen of a version."""
    return {
        "slot": slot,
        "version": version,
        "requests": tally.requests,
        "errors": tally.errors,
        "error_ratio": tally.error_ratio,
        "p50_seconds": quantile(tally.seconds, 0.5),
        "p95_seconds": quantile(tally.seconds, SLOW_SHARE),
        "p95_first_token_seconds": quantile(tally.first_token_seconds, SLOW_SHARE),
        "p95_token_seconds": quantile(tally.token_seconds, SLOW_SHARE),
        "thumbs_up": tally.thumbs_up,
        "thumbs_down": tally.thumbs_down,
    }


def end_body(record: AliasRecord) -> dict[str, Any]:
    """Return how a canary ended."""
    return {
        "version": record.version,
        "reason": record.reason,
        "actor": record.actor,
        "ended_at": record.moved_at,
    }
