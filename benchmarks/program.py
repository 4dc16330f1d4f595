"""What all programs share: options of one meaning, a folder while they run, and what they end with."""

from __future__ import annotations

import argparse
import json
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from adapter_store.errors import StrataError
from adapter_store.settings import EMBEDDED_BASE
from benchmarks.telling import console

HELD, MISSED, UNMEASURED, INTERRUPTED = 0, 1, 2, 130
_STATUSES = (
    f"exit status: {HELD} measured; {MISSED} measured, and what has to hold does not; "
    f"{UNMEASURED} not measured, or a wrong command line; {INTERRUPTED} interrupted"
)


class NotMeasured(StrataError):
    """Report why a program has no figures."""

    code = "not_measured"


def program_parser(module: str, description: str, *, figures: bool = True) -> argparse.ArgumentParser:
    """Return a parser that says how the program is called and what its exit status means.

    Args:
        module: the module that is run, such as ``benchmarks.swap``.
        description: one sentence.
        figures: add ``--json``, the file that ``write_figures`` takes.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description, epilog=_STATUSES)
    if figures:
        parser.add_argument("--json", type=_figures_file, help="file for all raw figures")
    return parser


def _figures_file(text: str) -> Path:
    """Return the file that figures can be written to, before hours are spent on them."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written; name a file in a folder that there is")
    return path


def add_base(parser: argparse.ArgumentParser) -> None:
    """Add ``--base``, as ``load_base`` takes it."""
    parser.add_argument("--base", default=EMBEDDED_BASE, help="a LLaVA folder or hub id")


def base_place(base: str) -> str | Path:
    """Return what ``--base`` names; the embedded base is assembled first, with a bar."""
    from adapter_store.base import ensure_embedded_base

    return ensure_embedded_base() if base == EMBEDDED_BASE else base


def run_program(measure: Callable[[Path], bool | None], *, interrupted: str = "interrupted") -> int:
    """Measure in a folder that is gone afterwards, tell a failure in a sentence, and return the exit status.

    Args:
        measure: prints its figures; False: something that has to hold does not.
        interrupted: what an interrupted user is told.
    """
    try:
        # What a program started may still write: a folder that stays for it takes no figures away.
        with TemporaryDirectory(prefix="strata-benchmark-", ignore_cleanup_errors=True) as folder:
            return MISSED if measure(Path(folder)) is False else HELD
    except StrataError as error:
        # A message may hold brackets, which are no markup.
        console.print(f"error: {error.message}", style="red", markup=False, highlight=False, soft_wrap=True)
        return UNMEASURED
    except Exception:  # noqa: BLE001  the interpreter would end with 1, which says that figures are there
        traceback.print_exc()
        return UNMEASURED
    except KeyboardInterrupt:
        console.print(interrupted)
        return INTERRUPTED


def write_figures(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON, if there is a file for them; paths and the like become text."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=1, default=str) + "\n", encoding="utf-8")
