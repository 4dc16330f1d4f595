"""Parse the command line, run one verb, and turn every failure into a sentence and an exit status.

Exit status: 0 done, 1 it failed, 2 the command or its input is wrong, 3 learned but not served,
4 lost sight of a job or it has not begun, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata

from adapter_store.errors import InputError, StrataError
from server.cli import ask, base, canary, completion, correct, dataset, lora, operate, processes, teach
from server.cli.output import print_error
from server.cli.parsing import Parser, verb_parser
from server.cli.watch import LostSight

EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_LOST_SIGHT = 4
EXIT_INTERRUPTED = 130


def build_parser() -> Parser:
    """Return the parser of all verbs."""
    parser = Parser(
        prog="strata",
        description="A LLaVA server that keeps learning: ask, teach, be answered better without a restart.",
        epilog="Settings are environment variables, STRATA_HOME and so on: see the README. "
        "Exit status: 0 done, 1 failed, 2 wrong command or input, 3 learned but not served, "
        "4 lost sight of a job that may go on, or the correction is in none yet (both with --wait).",
    )
    parser.add_argument("--version", action="version", version=f"strata {metadata.version('strata-llava')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for group in (processes, base, ask, dataset, correct, teach, operate, canary, lora, completion):
        group.add_verbs(verbs)
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse; verbs that start a program keep what they do not know themselves as ``args.rest``."""
    parser = build_parser()
    args, args.rest = parser.parse_known_args(argv)
    if args.rest and not getattr(args, "passes_on", False):
        verb_parser(parser, args.verb).unknown(args.rest)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    args = _parse(argv)
    as_json = bool(getattr(args, "json", False))
    try:
        return int(args.run(args) or 0)
    except InputError as error:
        print_error(error.message, code=error.code, as_json=as_json)
        return EXIT_INPUT
    except StrataError as error:
        print_error(error.message, code=error.code, as_json=as_json)
        return EXIT_LOST_SIGHT if isinstance(error, LostSight) else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - the last line of defense: a sentence, never a traceback
        if getattr(args, "debug", False):
            traceback.print_exc()
        message = f"{type(error).__name__}: {error}; run it again with --debug to see where"
        print_error(message, code="internal_error", as_json=as_json)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
