"""Write what the programs under ``strata up`` say and what happens to them."""

from __future__ import annotations

import json
import threading

from server.cli.output import clean, print_json, stdout
from server.launch.stack import GATEWAY, REDIS, WORKER, StackOptions
from server.launch.supervisor import Event

_COLORS = {GATEWAY: "cyan", WORKER: "magenta", REDIS: "yellow"}
_CLOCK = slice(11, 19)
_UNSHOWN = frozenset({"time", "level", "logger", "message", "request_id"})


def readable(line: str) -> str:
    """Return a JSON log line as ``12:00:00 message key=value``; any other line as it is."""
    if not line.startswith("{"):
        return line
    try:
        record = json.loads(line)
        head = f"{record['time'][_CLOCK]} {record['message']}"
    except (ValueError, KeyError, TypeError):
        return line
    level = record.get("level", "info")
    words = [head if level == "info" else f"{level}: {head}"]
    words += [f"{name}={value}" for name, value in record.items() if name not in _UNSHOWN]
    return " ".join(words)


class Reporter:
    """Write what the supervised programs say and what happens to them."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._next_note = 10.0
        self._lock = threading.Lock()

    def line(self, program: str, text: str) -> None:
        """Write one line of a program's output behind its name."""
        with self._lock:
            if self._as_json:
                print_json({"event": "log", "program": program, "line": text})
            else:
                stdout.print(f"[{_COLORS.get(program, 'white')}]{program:>7} |[/] {clean(readable(text))}")

    def event(self, event: Event) -> None:
        """Write what happened to a program."""
        with self._lock:
            if self._as_json:
                print_json({"event": event.kind, "program": event.program, "message": event.message})
            else:
                stdout.print(
                    f"[bold] strata |[/] {event.program} {event.kind} [dim]{clean(event.message)}[/]"
                )

    def waiting(self, seconds: float, reason: str) -> None:
        """Write now and then what the gateway still waits for."""
        if seconds >= self._next_note:
            self._next_note += 10.0
            self.event(Event("starting", GATEWAY, f"{seconds:.0f} s: {reason}"))

    def ready(self, options: StackOptions) -> None:
        """Say where the service is."""
        if self._as_json:
            print_json({"event": "ready", "program": "strata", "url": options.url, "home": str(options.home)})
            return
        with self._lock:
            stdout.print(f"\n[bold green] ready at {options.url}[/]   data in {options.home}")
            stdout.print(f"   ask      strata chat --url {options.url} --image FILE 'What is shown?'")
            stdout.print(f"   teach    strata submit --url {options.url} DATA --task NAME --wait")
            stdout.print(f"   look     {options.url}/docs   {options.url}/metrics")
            stdout.print("   stop     Ctrl-C\n")
