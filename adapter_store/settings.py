"""Settings that every program shares, and the one way to read them: environment, flags, all faults at once.

Each program subclasses ``SharedSettings``; nothing below the entry points ever sees a settings object.
A variable with the prefix ``STRATA_`` that no program knows is refused: a misspelled setting that silently
does nothing is worse than a start that fails.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from adapter_store.errors import InputError
from adapter_store.names import check_lineage

PREFIX = "STRATA_"
EMBEDDED_BASE = "embedded"
TARGETS = "o_proj"
FROZEN_SHARE = 0.67
DENSE_RANK = 512

SHARED_NAMES = (
    "home",
    "base",
    "model_name",
    "redis_url",
    "store_url",
    "cache",
    "threads",
    "device",
    "dtype",
    "targets",
    "frozen_share",
    "max_chance",
    "holdout_ratio",
    "log_level",
)
GATEWAY_NAMES = (
    "host",
    "port",
    "allowed_hosts",
    "api_keys",
    "engine",
    "max_batch",
    "max_waiting",
    "max_model_len",
    "banks",
    "kv_cache_memory_bytes",
    "pool_rank",
    "engine_process",
    "tensor_parallel_size",
    "gpu_memory_utilization",
    "dense_rank",
    "alias_poll_seconds",
    "probe_tolerance",
    "canary_max_error_ratio",
    "canary_max_slowdown",
    "canary_max_thumbs_down",
    "canary_min_requests",
    "canary_min_thumbs",
    "shadow_waiting",
    "max_request_bytes",
    "max_upload_bytes",
    "max_held_bytes",
    "body_timeout_seconds",
    "image_url_hosts",
    "max_images",
    "max_messages",
    "max_choices",
    "max_stop",
    "max_logprobs",
    "default_max_tokens",
    "feedback_count",
    "feedback_seconds",
)
WORKER_NAMES = (
    "metrics_host",
    "metrics_port",
    "worker_id",
    "lease_seconds",
    "max_deliveries",
    "max_forgetting",
    "max_leak",
    "min_retention",
    "holdout_cap",
    "seed",
    "rank",
    "rows_per_task",
    "top_m",
    "routing",
    "span",
    "theta",
    "tau",
    "contextual",
    "branch",
    "ema_mode",
    "share",
    "nice",
    "prefix_cache_bytes",
    "retention_questions",
    "epochs",
    "learning_rate",
    "batch_size",
    "max_train_seconds",
)
TOOL_NAMES = ("url", "api_key", "demo_dir")
"""Read by the command line tool only."""


class SettingsError(InputError):
    """Report every faulty setting at once; the program prints the message and exits."""

    code = "invalid_settings"


def default_home() -> Path:
    """Return the folder that holds data sets, files, jobs and versions when ``STRATA_HOME`` is not set."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "strata"


class SharedSettings(BaseSettings):
    """Hold what gateway and worker must agree on."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    home: Path = Field(default_factory=default_home, description="folder of data sets, files, jobs, versions")
    base: str = Field(default=EMBEDDED_BASE, description="'embedded', a LLaVA folder or a hub id")
    model_name: str = Field(default="strata", description="name of the model and of its lineage of versions")
    redis_url: str = Field(
        default="", description="redis:// or unix://; empty: the embedded server of the home"
    )
    store_url: str = Field(
        default="", description="folder or fsspec URL of the versions; empty: <home>/versions"
    )
    cache: Path | None = Field(default=None, description="folder of the assembled base and downloads")
    threads: int = Field(default=0, ge=0, le=1024, description="CPU threads of torch; 0: as torch decides")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="base's dtype"
    )
    targets: str = Field(default=TARGETS, description="comma-separated linears that versions adapt")
    frozen_share: float = Field(
        default=FROZEN_SHARE,
        ge=0,
        lt=1,
        description="share of the layers, from the bottom, never adapted",
    )
    max_chance: float = Field(
        default=0.05, gt=0, le=1, description="gate: largest probability that a batch is learned by luck only"
    )
    holdout_ratio: float = Field(default=0.2, ge=0, le=0.9, description="share of pictures kept to measure")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level")

    @field_validator("home", "cache")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("model_name")
    @classmethod
    def _name(cls, value: str) -> str:
        try:
            return check_lineage(value)
        except InputError as error:
            raise ValueError(error.message) from None

    @field_validator("redis_url")
    @classmethod
    def _readable(cls, value: str) -> str:
        from adapter_store.jobs.connection import check_url

        try:
            return check_url(value) if value else value
        except InputError as error:
            raise ValueError(error.message) from None

    @property
    def target_names(self) -> tuple[str, ...]:
        """Return the names in ``targets``."""
        return tuple(name.strip() for name in self.targets.split(",") if name.strip())

    @property
    def versions_url(self) -> str:
        """Return where the versions lie: ``store_url``, or a folder of the home."""
        return self.store_url or str(self.home / "versions")


SettingsT = TypeVar("SettingsT", bound=SharedSettings)


def known_names() -> frozenset[str]:
    """Return the names of all settings of all programs, lower case, without the prefix."""
    return frozenset((*SHARED_NAMES, *GATEWAY_NAMES, *WORKER_NAMES, *TOOL_NAMES))


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return one sentence for each ``STRATA_`` variable that no program knows."""
    known = sorted(f"{PREFIX}{name.upper()}" for name in known_names())
    return [
        f"{variable} is not a setting{_did_you_mean(variable, known)}"
        for variable in sorted(environ)
        if variable.startswith(PREFIX) and variable not in known
    ]


def read_settings(
    kind: type[SettingsT],
    argv: Sequence[str] = (),
    *,
    program: str,
    aliases: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> SettingsT:
    """Build ``kind`` from the environment and, stronger, from flags.

    Args:
        kind: settings class; each field is a flag ``--field-name``.
        argv: flags without the program's name.
        program: shown in the usage line.
        aliases: further flag -> field name, such as ``--max-num-seqs`` -> ``max_batch``.
        environ: default ``os.environ``; used to find unknown variables.

    Raises:
        SettingsError: with every fault in one message.
    """
    faults = unknown_variables(os.environ if environ is None else environ)
    flags, flag_faults = _read_flags(kind, argv, program, aliases or {})
    faults += flag_faults
    settings: SettingsT | None = None
    try:
        settings = kind(**flags)
    except ValidationError as error:
        faults += [_fault_of(item) for item in error.errors(include_url=False, include_context=False)]
    if faults or settings is None:
        raise SettingsError("settings cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return settings


def make_home(home: Path) -> None:
    """Have the home folder in place; raise SettingsError if it cannot be made."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        text = f"the home folder {home} cannot be made: {reason}; choose another with --home or STRATA_HOME"
        raise SettingsError(text, param="home") from None


def _read_flags(
    kind: type[SharedSettings], argv: Sequence[str], program: str, aliases: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    parser = argparse.ArgumentParser(
        prog=program,
        usage="%(prog)s [--FLAG VALUE ...]",
        allow_abbrev=False,
        description=f"{(kind.__doc__ or '').strip()} Each flag is also a variable: --max-x is {PREFIX}MAX_X.",
    )
    names: dict[str, list[str]] = {field: [f"--{field.replace('_', '-')}"] for field in kind.model_fields}
    for flag, field in aliases.items():
        names[field].append(flag)
    for field, flags in names.items():
        info = kind.model_fields[field]
        parser.add_argument(*flags, dest=field, default=None, metavar="VALUE", help=_help_of(field, info))
    found, rest = parser.parse_known_args(list(argv))
    every = [flag for flags in names.values() for flag in flags]
    strange = [
        item
        for place, item in enumerate(rest)
        if item.startswith("-") or not _is_value_of(rest[place - 1 : place])
    ]
    faults = [f"{item} is not a flag{_did_you_mean(item.split('=')[0], every)}" for item in strange]
    return {key: value for key, value in vars(found).items() if value is not None}, faults


def _help_of(field: str, info: FieldInfo) -> str:
    text = info.description or field
    if isinstance(info.default, (bool, int, float, str)) and info.default != "":
        text += f" (default {info.default})"
    return text.replace("%", "%%")


def _is_value_of(before: Sequence[str]) -> bool:
    """Tell whether the word behind ``before`` belongs to an unknown flag, which is reported already."""
    return bool(before) and before[0].startswith("-") and "=" not in before[0]


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else "; see --help for the list"


def _fault_of(item: Any) -> str:
    name = str(item["loc"][0]) if item["loc"] else "settings"
    given = item.get("input")
    is_secret = "key" in name or name.endswith("_url")  # a URL may carry a password
    shown = "" if is_secret or given is None else f", not {str(given)[:80]!r}"
    reason = str(item["msg"]).removeprefix("Value error, ")
    return f"{PREFIX}{name.upper()} (--{name.replace('_', '-')}): {reason}{shown}"
