"""The options that all programs share which measure a gateway from outside."""

from __future__ import annotations

import argparse

from benchmarks.live.process import gateway_threads
from benchmarks.program import add_base, program_parser


def live_parser(module: str, description: str) -> argparse.ArgumentParser:
    """Return a parser that knows how the gateway is run, how long answers are and where figures go.

    Args:
        module: the module that is run, such as ``benchmarks.swap``.
        description: one sentence.
    """
    parser = program_parser(module, description)
    parser.add_argument("--engine", default="transformers", help="engine of the gateway")
    add_base(parser)
    parser.add_argument("--device", default="auto", help="where models run: auto, cpu, cuda")
    parser.add_argument(
        "--threads", type=int, default=gateway_threads(), help="computing threads of the gateway"
    )
    parser.add_argument("--max-tokens", type=int, default=32, help="longest answer")
    return parser
