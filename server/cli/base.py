"""``strata base``: show or assemble the model that answers before anything is taught."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from adapter_store.errors import StrataError
from server.cli.arguments import add_verb
from server.cli.output import clean, percent, print_json, stdout


def add_verbs(verbs: Any) -> None:
    """Add ``base``."""
    base = add_verb(verbs, "base", "show or assemble the model that answers before anything is taught", _base)
    base.add_argument("--assemble", action="store_true", help="download and build it if it is not there yet")


def _base(args: argparse.Namespace) -> int:
    from adapter_store.base.assemble import MANIFEST, ensure_embedded_base

    folder = ensure_embedded_base(progress=True) if args.assemble else _embedded_folder()
    if not (folder / MANIFEST).is_file():
        raise StrataError(f"the embedded base is not at {folder} yet; run `strata base --assemble`")
    facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    scores = _scores()
    if args.json:
        print_json({"path": str(folder), **facts, "scores": scores})
        return 0
    stdout.print(f"[bold]{clean(facts['base_id'])}[/]  {clean(str(folder))}")
    stdout.print(f"digest {facts['digest']}")
    for name, package in facts.get("packages", {}).items():
        stdout.print(f"  {name} {package['version']}  {package['license']}")
    if scores:
        table = Table("held-out questions", "right", "without the picture", "asked", box=None)
        for kind, row in scores.items():
            right, blind = percent(row["accuracy"]), percent(row["question_only"])
            table.add_row(clean(kind), right, blind, str(row["questions"]))
        stdout.print(table)
    return 0


def _embedded_folder() -> Path:
    from adapter_store.base.assemble import BASE_ID, base_digest
    from adapter_store.base.download import default_cache_dir
    from adapter_store.base.trained_part import load_trained_part, shipped_weights_dir

    digest = base_digest(load_trained_part(shipped_weights_dir()))
    return default_cache_dir() / f"{BASE_ID}-{digest[:12]}"


def _scores() -> dict[str, Any]:
    """Return the held-out scores by kind of question, recorded when the trained part was made."""
    from adapter_store.base.trained_part import shipped_weights_dir

    report = shipped_weights_dir() / "report.json"
    return dict(json.loads(report.read_text(encoding="utf-8"))["questions"]) if report.is_file() else {}
