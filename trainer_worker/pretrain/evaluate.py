"""Print (and keep) the scores of an assembled base.

python -m trainer_worker.pretrain.evaluate [--base FOLDER] [--write FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from adapter_store.base.allocator import tune_allocator


def print_report(report: dict[str, Any]) -> None:
    """Print a report as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", "accuracy", "question only", "questions", title="Held-out pictures")
    for kind, row in report["questions"].items():
        table.add_row(kind, f"{row['accuracy']:.3f}", f"{row['question_only']:.3f}", str(row["questions"]))
    console = Console()
    console.print(table)
    console.print(report["chat"])
    console.print(report["replies"])


def training_record(log: Path) -> list[dict[str, Any]]:
    """Return every start, note and the last step of a training log."""
    if not log.is_file():
        return []
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [entry for entry in entries if entry["phase"] == "train"]
    return [*(entry for entry in entries if entry["phase"] in ("start", "note")), *steps[-1:]]


def main(arguments: list[str] | None = None) -> None:
    """Score a base and print (and, if asked, keep) the report."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer_worker.pretrain.evaluate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--base", type=Path, help="folder of the base (default: the embedded one)")
    parser.add_argument(
        "--pictures", type=int, default=120, help="held-out pictures to ask about (default 120)"
    )
    parser.add_argument("--write", type=Path, help="also write the report to this file")
    options = parser.parse_args(arguments)
    tune_allocator()
    from adapter_store.base.assemble import ensure_embedded_base
    from adapter_store.base.load import load_base
    from trainer_worker.pretrain.scoring import evaluate

    report = evaluate(load_base(options.base or ensure_embedded_base()), options.pictures)
    print_report(report)
    if options.write is not None:
        report["training"] = training_record(options.write.parent / "training_log.jsonl")
        options.write.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
