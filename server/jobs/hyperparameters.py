"""Settings of the method that a job may carry, checked before the job is accepted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from adapter_store.errors import InputError
from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.jobs.record import Setting

_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")
_MAX_SETTINGS = 32
_MAX_TEXT = 120
_OPENAI_DEFAULT = "auto"


def checked_hyperparameters(given: Mapping[str, Any], param: str = "hyperparameters") -> dict[str, Setting]:
    """Return the settings that are set; ``"auto"`` and None mean the default and are left out.

    Raises:
        InputError: an unknown setting or a value that it cannot have, every fault in one message.
    """
    faults = []
    settings: dict[str, Setting] = {}
    if len(given) > _MAX_SETTINGS:
        raise InputError(f"{len(given)} hyperparameters are more than {_MAX_SETTINGS}", param=param)
    for name, value in given.items():
        if value is None or value == _OPENAI_DEFAULT:
            continue
        if not _NAME.fullmatch(str(name)):
            faults.append(f"{str(name)[:48]!r} is not a name of a setting")
        elif isinstance(value, float) and not math.isfinite(value):
            faults.append(f"{name} must be a finite number")
        elif isinstance(value, str) and len(value) > _MAX_TEXT:
            faults.append(f"{name} is longer than {_MAX_TEXT} characters")
        elif not isinstance(value, bool | int | float | str):
            faults.append(f"{name} must be a number, a text, true or false")
        else:
            settings[name] = value
    if faults:
        raise InputError("; ".join(faults), param=param)
    Hyperparameters.of_job(Hyperparameters(), settings)
    return settings


def from_text(text: str) -> Setting:
    """Return the value that a form field means: true/false, an integer, a number, or the text itself."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
