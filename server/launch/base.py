"""Have the embedded base in place before any program that loads it starts."""

from __future__ import annotations

import json
import subprocess
import sys

from adapter_store.settings import EMBEDDED_BASE
from server.launch.supervisor import LaunchFailed


def assemble_embedded_base(base: str) -> None:
    """Assemble the embedded base if it is the one to use.

    A child does it, so that the supervisor stays small; its progress bar is on standard error.

    Args:
        base: The setting of the same name; empty stands for the embedded base.

    Raises:
        LaunchFailed: With the reason, if it could not be assembled.
    """
    if base not in {"", EMBEDDED_BASE}:
        return
    command = [sys.executable, "-m", "server.cli.main", "base", "--assemble", "--json"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise LaunchFailed(f"the embedded base cannot be used: {_message_of(done.stdout)}")


def _message_of(output: str) -> str:
    try:
        return str(json.loads(output)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return output.strip()[-400:] or "see above"
