"""The one rule for names that become paths, Redis keys or metric labels."""

from __future__ import annotations

import re

from adapter_store.errors import InputError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"base|v[1-9][0-9]{0,8}")
BASE_VERSION = "base"


def _check(value: str, kind: str) -> str:
    if not _NAME.fullmatch(value) or ".." in value:
        raise InputError(
            f"{kind} {value[:80]!r} is not allowed: use 1 to 63 of a-z 0-9 . _ - with a letter or digit first"
            " and no two dots in a row",
            param=kind,
        )
    return value


def check_task_name(value: str) -> str:
    """Return ``value`` if it may name a task; raise InputError otherwise."""
    return _check(value, "task")


def check_alias_name(value: str) -> str:
    """Return ``value`` if it may name an alias; raise InputError otherwise (version ids may not)."""
    if _VERSION.fullmatch(value):
        raise InputError(f"alias {value!r} is not allowed: it reads like a version id", param="alias")
    return _check(value, "alias")


def check_lineage(value: str) -> str:
    """Return ``value`` if it may name a lineage (the model name); raise InputError otherwise."""
    return _check(value, "model")


def check_version_id(value: str) -> str:
    """Return ``value`` if it is ``base`` or ``v<number>``; raise InputError otherwise."""
    if not _VERSION.fullmatch(value):
        raise InputError(f"version {value[:80]!r} is not allowed: use base, v1, v2, ...", param="version")
    return value
