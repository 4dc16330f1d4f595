"""Settings of the gateway: read once at the entry point, then passed on as plain arguments."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Literal

from pydantic import Field, SecretStr, field_validator

from adapter_store.errors import InputError
from adapter_store.settings import DENSE_RANK, SharedSettings
from server.canary.rule import Rule
from server.engine.requests import MAX_LOGPROBS, MAX_STOP_STRINGS

FLAG_ALIASES = {
    "--model": "base",
    "--served-model-name": "model_name",
    "--max-num-seqs": "max_batch",
    "--api-key": "api_keys",
}
"""Flags that vLLM users know, and the settings they stand for."""

MIB = 1024 * 1024
_RULE = Rule()
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")


class GatewaySettings(SharedSettings):
    """Serve chat, teaching and operation of one learning LLaVA over HTTP."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0: any free one")
    allowed_hosts: str = Field(
        default="", description="further names that a server without keys answers to, comma-separated"
    )
    api_keys: SecretStr = Field(
        default=SecretStr(""),
        description="comma-separated keys, each key or key:ask+teach+operate; empty: open",
    )
    engine: Literal["transformers", "vllm"] = Field(
        default="transformers", description="inference engine; vllm needs the extra of that name"
    )
    max_batch: int = Field(default=32, ge=1, le=1024, description="requests that run at once")
    max_waiting: int = Field(default=256, ge=0, le=100_000, description="requests that wait; more get 429")
    max_model_len: int = Field(
        default=0, ge=0, description="tokens of prompt and answer; 0: as the base allows"
    )
    banks: int = Field(default=2, ge=2, le=16, description="versions resident at once, the base not counted")
    kv_cache_memory_bytes: int = Field(
        default=0, ge=0, description="memory of keys and values; 0: as the device allows"
    )
    pool_rank: int = Field(
        default=512,
        ge=8,
        le=65536,
        description="vllm: total rank that a bank has room for; without graphs it grows",
    )
    engine_process: bool = Field(default=True, description="vllm: run it as processes of its own")
    tensor_parallel_size: int = Field(default=1, ge=1, le=64, description="vllm: devices that share a model")
    gpu_memory_utilization: float = Field(
        default=0.6, gt=0, le=1, description="vllm: share of a GPU for model, keys and values"
    )
    dense_rank: int = Field(
        default=DENSE_RANK,
        ge=0,
        description="total rank up to which all increments are computed for every token",
    )
    alias_poll_seconds: float = Field(
        default=0,
        ge=0,
        le=60,
        description="how often moved aliases are looked for; 0: every 0.1 s in a folder, 0.5 s elsewhere",
    )
    probe_tolerance: float = Field(
        default=0,
        ge=0,
        le=10,
        description="largest difference of a probe's log probabilities; 0: 0.02, or 0.2 below float32",
    )
    canary_max_error_ratio: float = Field(
        default=_RULE.max_error_ratio,
        ge=0,
        le=1,
        description="share of a canary's requests that may fail; more ends it",
    )
    canary_max_slowdown: float = Field(
        default=_RULE.max_slowdown,
        ge=0,
        le=1000,
        description="largest p95 time to a canary's first or per further token, over stable's; 0: not asked",
    )
    canary_max_thumbs_down: float = Field(
        default=_RULE.max_thumbs_down,
        ge=0,
        le=1,
        description="share of a canary's thumbs that may point down; more ends it",
    )
    canary_min_requests: int = Field(
        default=_RULE.min_requests, ge=1, le=2000, description="requests before a canary is judged"
    )
    canary_min_thumbs: int = Field(
        default=_RULE.min_thumbs, ge=1, description="thumbs before a canary is judged by them"
    )
    shadow_waiting: int = Field(
        default=8, ge=1, le=1000, description="answers that wait for the shadow; more are not compared"
    )
    max_request_bytes: int = Field(default=32 * MIB, ge=1024, description="largest JSON body")
    max_upload_bytes: int = Field(default=2048 * MIB, ge=1024, description="largest uploaded file")
    max_held_bytes: int = Field(
        default=512 * MIB, ge=1024, description="JSON bodies in memory at once; more get 429"
    )
    body_timeout_seconds: float = Field(
        default=30.0, gt=0, le=3600, description="longest pause within a body"
    )
    image_url_hosts: str = Field(
        default="",
        description="comma-separated hosts that images may be fetched from; empty: data: URLs only",
    )
    max_images: int = Field(default=16, ge=1, le=256, description="pictures per request")
    max_messages: int = Field(default=256, ge=1, le=10_000, description="messages per request")
    max_choices: int = Field(default=8, ge=1, le=128, description="largest n")
    max_stop: int = Field(default=4, ge=1, le=MAX_STOP_STRINGS, description="stop strings per request")
    max_logprobs: int = Field(default=20, ge=0, le=MAX_LOGPROBS, description="largest top_logprobs")
    default_max_tokens: int = Field(
        default=256, ge=1, description="answer length when the request names none"
    )

    feedback_count: int = Field(
        default=8, ge=1, le=32, description="corrections of a task that become a job at once"
    )
    feedback_seconds: float = Field(
        default=20, ge=0, le=604_800, description="age at which waiting corrections become a job; 0: never"
    )

    @property
    def allowed_names(self) -> frozenset[str]:
        """Return the single names of ``allowed_hosts``, lower case."""
        return frozenset(name.lower() for name in _names(self.allowed_hosts))

    @property
    def canary_rule(self) -> Rule:
        """Return the rule that the settings ``canary_...`` make, each named as its field."""
        return Rule(**{field.name: getattr(self, f"canary_{field.name}") for field in fields(Rule)})

    @property
    def look_seconds(self) -> float:
        """Return how often moved aliases are looked for; a look at an object store costs requests."""
        place = self.versions_url
        return self.alias_poll_seconds or (0.1 if place.startswith("file://") or "://" not in place else 0.5)

    @field_validator("allowed_hosts")
    @classmethod
    def _check_names(cls, hosts: str) -> str:
        wrong = [name for name in _names(hosts) if not _NAME.fullmatch(name)]
        if wrong:
            text = "write names alone, such as strata.example, without scheme, port, path or *"
            raise ValueError(f"{', '.join(map(repr, wrong))}: {text}")
        return hosts

    @field_validator("api_keys")
    @classmethod
    def _usable(cls, value: SecretStr) -> SecretStr:
        from server.auth import parse_keys

        try:
            parse_keys(value.get_secret_value())
        except InputError as error:
            raise ValueError(error.message) from None
        return value


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]
