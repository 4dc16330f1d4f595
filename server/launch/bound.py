"""Run a program that cannot outlive its parent.

Usage: ``python bound.py PARENT_PID SIGNAL PROGRAM [ARGUMENT...]``. The kernel sends SIGNAL to the program
when the parent is gone, even after ``kill -9``. The setting survives ``exec``, so the program needs no
code for it. This file imports nothing of the project: it is run by path, between fork and the real program.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
PARENT_GONE_STATUS = 3


def bind_to_parent(parent_pid: int, signal_number: int) -> None:
    """Ask the kernel for a signal when the parent dies; exit at once if it is dead already.

    Args:
        parent_pid: Process id that the caller expects as its parent.
        signal_number: Signal to get when that parent is gone.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent_pid:
        # The parent died between fork and prctl: the signal will never come.
        sys.exit(PARENT_GONE_STATUS)


def main(arguments: list[str]) -> None:
    """Bind to the parent and become the program; never returns."""
    parent_pid, signal_number, *command = arguments
    bind_to_parent(int(parent_pid), int(signal_number))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
