"""Hold the flags that several verbs share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from server.cli.client import DEFAULT_URL, Client
from server.cli.wording import words_of

Run = Callable[[argparse.Namespace], int | None]


def add_verb(
    verbs: Any, name: str, help_text: str, run: Run, *, client: bool = False, add_help: bool = True
) -> argparse.ArgumentParser:
    """Add a verb with ``--json`` and ``--debug``, and the server's address if it is a client of it.

    Args:
        verbs: What `argparse.ArgumentParser.add_subparsers` returned.
        name: The verb.
        help_text: One sentence that says what it is for.
        run: Called with the parsed arguments; returns the exit status.
        client: Whether the verb speaks to a running server.
        add_help: Whether ``--help`` is the usual one; else the caller adds its own.
    """
    description = help_text[0].upper() + help_text[1:] + "."
    parser = verbs.add_parser(
        name, help=help_text, description=description, allow_abbrev=False, add_help=add_help
    )
    parser.add_argument("--json", action="store_true", help="write JSON instead of text")
    parser.add_argument("--debug", action="store_true", help="show where an internal error happened")
    if client:
        parser.add_argument(
            "--url",
            default=os.environ.get("STRATA_URL") or DEFAULT_URL,
            help="address of the server (STRATA_URL, default %(default)s)",
        )
        parser.add_argument(
            "--api-key", default=os.environ.get("STRATA_API_KEY"), help="key, if the server asks for one"
        )
        parser.add_argument(
            "--name",
            default=os.environ.get("STRATA_MODEL_NAME") or "strata",
            help="name of the served model (STRATA_MODEL_NAME, default %(default)s)",
        )
    parser.set_defaults(run=run, parser=parser)
    return parser


def at_least_one(text: str) -> int:
    """Return the whole number of 1 or more that a flag's text means; else it is a wrong command line."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def port_number(text: str) -> int:
    """Return the port that a flag's text names; else it is a wrong command line."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: use 1 to 65535")
    return int(text)


def client_of(args: argparse.Namespace, timeout_seconds: float = 60.0) -> Client:
    """Return a client for the server that the flags name."""
    return Client(args.url, args.api_key, timeout_seconds, words_of(args.parser))
