"""Turn flags of any program into the environment variables that all of them read."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from adapter_store.errors import InputError
from adapter_store.settings import PREFIX, known_names


def variables_of_flags(flags: Sequence[str]) -> dict[str, str]:
    """Return ``{"STRATA_PORT": "8001"}`` for ``["--port", "8001"]`` or ``["--port=8001"]``.

    Raises:
        InputError: With every fault: a flag that no program knows, a missing value, a stray word.
    """
    variables: dict[str, str] = {}
    faults: list[str] = []
    words = list(flags)
    while words:
        word = words.pop(0)
        name, has_value, value = word.removeprefix("--").partition("=")
        setting = name.replace("-", "_")
        if not word.startswith("--") or setting not in known_names():
            faults.append(f"{word} is not a flag{_did_you_mean(setting)}")
            if words and not words[0].startswith("--"):
                words.pop(0)
        elif has_value:
            variables[PREFIX + setting.upper()] = value
        elif words and not words[0].startswith("--"):
            variables[PREFIX + setting.upper()] = words.pop(0)
        else:
            faults.append(f"--{name} needs a value")
    if faults:
        raise InputError("; ".join(faults))
    return variables


def _did_you_mean(setting: str) -> str:
    close = difflib.get_close_matches(setting, sorted(known_names()), n=1, cutoff=0.6)
    return f"; did you mean --{close[0].replace('_', '-')}?" if close else ""
