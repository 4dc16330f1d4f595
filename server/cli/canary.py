"""``strata canary | shadow``: try a version on a share of the requests before it serves all of them."""

from __future__ import annotations

import argparse
from typing import Any

from adapter_store.errors import InputError
from adapter_store.names import check_version_id
from server.cli.arguments import add_verb, client_of
from server.cli.client import Client
from server.cli.output import clean, moment, percent, print_json, stderr, stdout, table

_REASON = "asked for on the command line"
_DEFAULT_WEIGHTS = {"canary": 0.1, "shadow": 1.0}
_PACES = {"first token, p95": "p95_first_token_seconds", "further, p95": "p95_token_seconds"}
"""The times that the rule compares, by what stands above them."""
_ACTIONS = {"canary": ("set", "promote", "rollback"), "shadow": ("set", "end")}


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    texts = {
        "canary": "let a version answer a share of the requests; promote it or roll it back",
        "shadow": "have a version answer along unseen and compare what it says",
    }
    for alias, text in texts.items():
        parser = add_verb(verbs, alias, text, _run, client=True)
        parser.add_argument("action", nargs="?", choices=_ACTIONS[alias], help="without one: show both")
        parser.add_argument("version", nargs="?", metavar="VERSION", help="with set: v1, v2, ... or base")
        parser.add_argument(
            "--weight",
            type=float,
            metavar="SHARE",
            help=f"with set: share of the requests, 0 to 1 (default {_DEFAULT_WEIGHTS[alias]:g})",
        )
        parser.add_argument("--reason", default=_REASON, help="kept in the history")
        parser.set_defaults(alias=alias)


def _run(args: argparse.Namespace) -> int:
    _check(args)
    with client_of(args) as client:
        done = _ACTS[args.action](args, client) if args.action else None
        shown = client.get(f"/v1/adapters/{args.name}/canary") if done is None or not args.json else None
    if args.json:
        print_json(shown if done is None else done)
        return 0
    if done is not None and done.get("warning"):
        stderr.print(f"[yellow]warning:[/] {clean(str(done['warning']))}")
    _show(shown)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.action != "set":
        if args.version is not None or args.weight is not None:
            text = f"a version and --weight belong to set: strata {args.alias} set v3 --weight 0.1"
            raise InputError(text, param="version")
        return
    if args.version is None:
        raise InputError(f"which version? strata {args.alias} set v3", param="version")
    check_version_id(args.version)
    if args.weight is not None and not 0 <= args.weight <= 1:
        raise InputError(f"--weight {args.weight:g} is no share: give 0 to 1", param="weight")


def _set(args: argparse.Namespace, client: Client) -> dict[str, Any]:
    weight = _DEFAULT_WEIGHTS[args.alias] if args.weight is None else args.weight
    body = {"version": args.version, "weight": weight, "reason": args.reason}
    return client.put(f"/v1/adapters/{args.name}/aliases/{args.alias}", json=body)


def _promote(args: argparse.Namespace, client: Client) -> dict[str, Any]:
    decided = client.post(f"/v1/adapters/{args.name}/canary:promote", json={"reason": args.reason})
    return {**decided, "warning": decided.get("stable", {}).get("warning")}


def _roll_back(args: argparse.Namespace, client: Client) -> dict[str, Any]:
    return client.post(f"/v1/adapters/{args.name}/canary:rollback", json={"reason": args.reason})


def _end(args: argparse.Namespace, client: Client) -> dict[str, Any]:
    path = f"/v1/adapters/{args.name}/aliases/{args.alias}"
    return client.request("DELETE", path, params={"reason": args.reason}).json()


_ACTS = {"set": _set, "promote": _promote, "rollback": _roll_back, "end": _end}


def _show(found: Any) -> None:
    for part in ("canary", "shadow"):
        named = found.get(part)
        if named is None:
            stdout.print(f"{part}: none")
            continue
        share = percent(named["weight"]) if named["weight"] is not None else "no share"
        why = "" if named["answering"] else f"; not now: {clean(str(named['reason']))}"
        stdout.print(f"{part}: [bold]{clean(str(named['version']))}[/], {share} of the requests{why}")
    columns = ("part", "version", "requests", "failed", *_PACES, "thumbs up", "down")
    rows = [
        (
            seen["slot"],
            seen["version"],
            seen["requests"],
            percent(seen["error_ratio"]),
            *(_seconds(seen[name]) for name in _PACES.values()),
            seen["thumbs_up"],
            seen["thumbs_down"],
        )
        for seen in found["versions"]
    ]
    stdout.print(table("", columns, rows))
    if found.get("canary"):
        stdout.print("all requests to the canary: strata canary promote; none: strata canary rollback")
        for ending in found["rule_in_words"]:
            stdout.print(f"A canary ends by itself when {clean(str(ending))}.")
    agreement = found.get("agreement")
    if agreement:
        stdout.print(f"the shadow said the same {agreement['same']} of {agreement['compared']} times")
    last = found.get("last_end")
    if last:
        ended = f"{last['version']} ended {moment(last['ended_at'])}: {last['reason']}"
        stdout.print(f"the last canary, {clean(ended)}")


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f} s"
