"""``strata up | serve | work | demo``: verbs that start something on this machine."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.cli.arguments import add_verb, at_least_one, port_number
from server.cli.output import print_json, stderr
from server.cli.reporter import Reporter
from server.launch.base import assemble_embedded_base
from server.launch.flags import variables_of_flags
from server.launch.ports import free_port
from server.launch.readiness import wait_until_ready
from server.launch.stack import GATEWAY, Stack, StackOptions
from server.launch.supervisor import Event

_READY_TIMEOUT_SECONDS = 600.0
_GATEWAY = "server"
_WORKER = "trainer_worker"


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    for name, about, run, modules in (
        ("up", "run gateway, trainer and Redis, and keep them up until Ctrl-C", _up, (_GATEWAY, _WORKER)),
        ("serve", "run the gateway alone; flags are passed on", _serve, (_GATEWAY,)),
        ("work", "run a trainer worker alone; flags are passed on", _work, (_WORKER,)),
    ):
        parser = add_verb(verbs, name, about, run, add_help=False)
        parser.set_defaults(passes_on=True)
        parser.add_argument("-h", "--help", action=_HelpWithSettings, modules=modules)
    demo = add_verb(verbs, "demo", "watch it learn two tasks while it serves, on real pictures", _demo)
    demo.add_argument("--home", type=Path, help="folder to use and keep (default: a temporary one)")
    demo.add_argument("--port", type=port_number, help="port of the gateway (default: 8000, or a free one)")
    demo.add_argument(
        "--out", type=Path, default=None, help="where the picture of the matrix goes (STRATA_DEMO_DIR)"
    )
    demo.add_argument(
        "--pictures", type=at_least_one, default=100, metavar="N", help="held-out questions per task"
    )
    demo.add_argument(
        "--train",
        type=at_least_one,
        metavar="N",
        help="examples per task (default: 1,200 digits, 1,100 animals)",
    )
    demo.add_argument(
        "--concurrency", type=at_least_one, default=16, metavar="N", help="questions asked at once"
    )
    demo.add_argument("--exit", action="store_true", help="end when done instead of staying up (DEMO_EXIT=1)")


class _HelpWithSettings(argparse.Action):
    """Show the help of a verb, and behind it the settings of the programs that it starts."""

    def __init__(
        self, option_strings: Sequence[str], dest: str = "help", *, modules: tuple[str, ...] = ()
    ) -> None:
        text = "show this, and every setting as a flag"
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=text)
        self._modules = modules

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        commands = [[sys.executable, "-m", module, "--help"] for module in self._modules]
        parts = [
            subprocess.run(each, check=True, stdout=subprocess.PIPE, text=True).stdout for each in commands
        ]
        try:
            sys.stdout.write("\n".join([parser.format_help(), *parts]))
            sys.stdout.flush()
        except BrokenPipeError:  # somebody read the first lines only
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        parser.exit()


def _serve(args: argparse.Namespace) -> int:
    return _become(args, _GATEWAY)


def _work(args: argparse.Namespace) -> int:
    return _become(args, _WORKER)


def _become(args: argparse.Namespace, module: str) -> int:
    """Replace this process by a program, so that signals reach it directly."""
    command = [sys.executable, "-m", module, *args.rest]
    if args.json:
        print_json({"event": "started", "program": module, "pid": os.getpid()})
    sys.stdout.flush()
    os.execv(command[0], command)


def _up(args: argparse.Namespace) -> int:
    os.environ.update(variables_of_flags(args.rest))
    options = _stack_options()
    options.require_free_ports()
    assemble_embedded_base(os.environ.get("STRATA_BASE", ""))
    stop, hurry = threading.Event(), threading.Event()
    stop_on_signals(stop, hurry)
    reporter = Reporter(as_json=args.json)
    stack = Stack(options, on_line=reporter.line, on_event=reporter.event)
    threading.Thread(target=_announce, args=(options, stop, reporter), daemon=True).start()
    try:
        stack.run(stop, hurry)
    finally:
        stop.set()
    return 0


def _stack_options() -> StackOptions:
    """Read and check the gateway's settings before anything starts; the worker checks its own."""
    from adapter_store.settings import make_home, read_settings
    from server.settings import GatewaySettings

    settings = read_settings(GatewaySettings, [], program="strata up")
    make_home(settings.home)
    try:
        metrics_port = int(os.environ.get("STRATA_METRICS_PORT") or StackOptions.metrics_port)
    except (TypeError, ValueError):
        metrics_port = 9101
    port = settings.port or free_port(settings.host)
    return StackOptions(settings.home, settings.host, port, metrics_port, settings.redis_url)


def stop_on_signals(stop: threading.Event, hurry: threading.Event) -> None:
    """Let SIGINT and SIGTERM set `stop`, and a second one `hurry`."""

    def handle(_number: int, _frame: object) -> None:
        (hurry if stop.is_set() else stop).set()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


def _announce(options: StackOptions, stop: threading.Event, reporter: Reporter) -> None:
    ready = wait_until_ready(
        options.url, timeout_seconds=_READY_TIMEOUT_SECONDS, give_up=stop.is_set, on_wait=reporter.waiting
    )
    if ready:
        reporter.ready(options)
    elif not stop.is_set():
        reporter.event(
            Event("unready", GATEWAY, f"not ready after {_READY_TIMEOUT_SECONDS:.0f} s; see its log above")
        )


def _demo(args: argparse.Namespace) -> int:
    from server.demo.run import DemoOptions, run_demo

    stderr.print("[dim]Strata demo: gateway, trainer and Redis start now; nothing is simulated[/]")
    out = args.out or Path(os.environ.get("STRATA_DEMO_DIR") or "demo-out")
    return run_demo(
        DemoOptions(
            home=args.home,
            port=args.port,
            out=out,
            pictures=args.pictures,
            train=args.train,
            concurrency=args.concurrency,
            stay=not (args.exit or os.environ.get("DEMO_EXIT") == "1"),
            as_json=args.json,
        )
    )
