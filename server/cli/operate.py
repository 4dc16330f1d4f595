"""``strata versions | promote | rollback | matrix``: see what was learned and choose what is served."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

from adapter_store.errors import InputError
from adapter_store.names import check_alias_name, check_version_id
from server.cli.arguments import add_verb, client_of
from server.cli.output import clean, moment, percent, print_json, stderr, stdout, table

_HELD_BACK = "held back"


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    versions = add_verb(
        verbs, "versions", "list versions and which alias serves which", _versions, client=True
    )
    versions.add_argument("version", nargs="?", metavar="VERSION", help="all there is to tell about this one")
    promote = add_verb(verbs, "promote", "serve a version: move an alias to it", _promote, client=True)
    promote.add_argument("version", metavar="VERSION", help="v1, v2, ... or base")
    rollback = add_verb(
        verbs, "rollback", "serve the version before: move an alias back", _rollback, client=True
    )
    for parser in (promote, rollback):
        parser.add_argument("--alias", default="stable", metavar="NAME", help="default: stable")
        parser.add_argument("--reason", default="asked for on the command line", help="kept in the history")
    matrix = add_verb(
        verbs, "matrix", "show accuracy per task after each stage, and forgetting", _matrix, client=True
    )
    matrix.add_argument("--csv", action="store_true", help="write the matrix as CSV")


def _versions(args: argparse.Namespace) -> int:
    path = f"/v1/adapters/{args.name}/versions"
    if args.version is not None:
        path += f"/{check_version_id(args.version)}"
    with client_of(args) as client:
        found = client.get(path)
    if args.json:
        print_json(found)
    elif args.version is not None:
        _show_version(found)
    else:
        _list_versions(args.name, found)
    return 0


def _list_versions(name: str, found: dict[str, Any]) -> None:
    aliases: dict[str, list[str]] = {}
    for record in found.get("aliases", []):
        aliases.setdefault(str(record["version"]), []).append(str(record["alias"]))
    rows = [
        (
            v["version"],
            ", ".join(aliases.get(v["version"], [])),
            v.get("task"),
            v.get("decision"),
            _gate(v),
            v.get("parent"),
            moment(v.get("created_at")),
        )
        for v in found["data"]
    ]
    columns = ("version", "served as", "task", "decision", "gate", "parent", "created")
    stdout.print(table(name, columns, rows))
    if any((v.get("gate") or {}).get("reasons") for v in found["data"]):
        stdout.print("\nwhy one was held back: strata versions VERSION")


def _show_version(version: dict[str, Any]) -> None:
    """Write what one version changed, and what the gate said."""
    facts = {
        "served as": ", ".join(version.get("aliases", [])) or None,
        "task": version.get("task"),
        "decision": version.get("decision"),
        "gate": _gate(version),
        "parent": version.get("parent"),
        "tasks": ", ".join(version.get("tasks", [])) or None,
        "job": version.get("job_id"),
        "data set": version.get("dataset_id"),
        "created": moment(version.get("created_at")),
    }
    stdout.print(table(version["version"], ("", ""), list(facts.items())))
    for reason in (version.get("gate") or {}).get("reasons", []):
        stdout.print(f"  - {clean(str(reason))}")
    if (version.get("accuracy") or {}).get("tasks"):
        show_matrix(version["accuracy"])


def _gate(version: dict[str, Any]) -> str | None:
    """Return what the gate said of a version, and whether that is what became of it."""
    gate = version.get("gate")
    if gate is None:
        return None
    if gate.get("passed"):
        return "passed" if version.get("promoted", True) else "passed, never promoted"
    return f"{_HELD_BACK}, promoted" if version.get("promoted") else _HELD_BACK


def _promote(args: argparse.Namespace) -> int:
    version, alias = check_version_id(args.version), check_alias_name(args.alias)
    path = f"/v1/adapters/{args.name}/aliases/{alias}"
    with client_of(args) as client:
        record = client.put(path, json={"version": version, "reason": args.reason})
    return _moved(args, record)


def _rollback(args: argparse.Namespace) -> int:
    body = {"alias": check_alias_name(args.alias), "reason": args.reason}
    with client_of(args) as client:
        record = client.post(f"/v1/adapters/{args.name}/rollback", json=body)
    return _moved(args, record)


def _moved(args: argparse.Namespace, record: dict[str, Any]) -> int:
    if args.json:
        print_json(record)
    else:
        stdout.print(f"{clean(str(record['alias']))} now serves [bold]{clean(str(record['version']))}[/]")
        if record.get("warning"):
            stderr.print(f"[yellow]warning:[/] {clean(str(record['warning']))}")
    return 0


def _matrix(args: argparse.Namespace) -> int:
    if args.csv and args.json:
        raise InputError("--csv and --json exclude each other: give one of them", param="csv")
    with client_of(args) as client:
        if args.csv:
            answer = client.request("GET", "/v1/evaluations/matrix", params={"format": "csv"})
            sys.stdout.write(answer.text)
            return 0
        found = client.get("/v1/evaluations/matrix")
    if args.json:
        print_json(found)
    elif not found.get("tasks"):
        stdout.print("nothing was taught yet; the matrix begins with the first task")
    else:
        show_matrix(found)
    return 0


def show_matrix(found: dict[str, Any]) -> None:
    """Write the accuracy matrix and its summary as a table."""
    tasks = list(found["tasks"])
    rows = [("base", *(_cell(value) for value in found["base"]))]
    for number, row in enumerate(found["rows"], start=1):
        trained = found.get("trained") or []
        name = f"{number} {trained[number - 1]}" if number <= len(trained) else str(number)
        cells = [*row, *([None] * (len(tasks) - len(row)))]
        rows.append((name, *(_cell(value) for value in cells)))
    stdout.print(table("accuracy on held-out pictures", ("after stage", *tasks), rows))
    for name in ("average_accuracy", "mean_average_accuracy", "forgetting", "backward_transfer"):
        if found.get(name) is not None:
            stdout.print(f"  {name.replace('_', ' '):22} {percent(found[name])}")
    for task, leak in (found.get("routing_leak") or {}).items():
        stdout.print(f"  routing leak {clean(task):9} {percent(leak)}")


def _cell(value: float | None) -> str | None:
    return None if value is None or math.isnan(value) else percent(value)
