"""The options that all programs share which measure a gateway from outside."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.live.process import gateway_threads


def live_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Return a parser that knows how the gateway is run, how long answers are and where figures go.

    Args:
        program: name of the module, such as ``benchmarks.swap``.
        description: one sentence.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("--engine", default="transformers", help="engine of the gateway")
    parser.add_argument("--base", default="embedded", help="a LLaVA folder or hub id")
    parser.add_argument("--device", default="auto", help="where models run: auto, cpu, cuda")
    parser.add_argument(
        "--threads", type=int, default=gateway_threads(), help="computing threads of the gateway"
    )
    parser.add_argument("--max-tokens", type=int, default=32, help="longest answer")
    parser.add_argument("--json", type=Path, help="file for all raw figures")
    return parser
