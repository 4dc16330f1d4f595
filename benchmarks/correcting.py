"""Time a correction: from the moment it is posted until its picture is answered as corrected.

    python -m benchmarks.correcting [--corrections 5] [--train 400] [--json OUT]

A gateway process and a worker process run as under ``strata up``. They learn the demo's digits, then one
correction after the other is posted: another digit than the one that was answered. Meanwhile the question is
asked until the answer is the corrected one. At the end all other questions are asked again: how many answers
changed is told, too.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from adapter_store.base.download import default_cache_dir
from benchmarks.beside.worker import LearningFailed, WorkerProcess
from benchmarks.live.arguments import live_parser
from benchmarks.live.figures import Spread
from benchmarks.live.process import GatewayProcess
from benchmarks.program import run_program, write_figures
from benchmarks.telling import Teller, told
from server.cli.client import Client
from server.demo.asking import Question, ask, matches
from server.demo.tasks import CLASSES, load_task, png_bytes, write_llava_zip
from server.demo.teaching import teach

GOAL_SECONDS = 60.0
_LIMIT_SECONDS = 900.0
_TASK = "digits"


@dataclass(frozen=True, slots=True)
class Corrected:
    """Record one correction: what was answered and what is right, seconds until it was, the job's parts."""

    before: str
    right: str
    seconds: float
    parts: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    arguments = _arguments(argv)
    return run_program(lambda folder: _report(arguments, folder))


def _report(arguments: argparse.Namespace, folder: Path) -> None:
    corrected, changed, asked = _measure(arguments, folder)
    print(as_text(corrected, changed, asked))
    record = {"settings": vars(arguments), "changed": changed, "asked": asked}
    write_figures(arguments.json, {**record, "corrections": [asdict(one) for one in corrected]})


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = live_parser("benchmarks.correcting", "Measure how soon a correction is answered.")
    parser.add_argument("--corrections", type=int, default=5, help="corrections, one after the other")
    parser.add_argument("--train", type=int, default=400, help="digits that are learned first")
    parser.add_argument("--others", type=int, default=60, help="other digits whose answers are to stay")
    return parser.parse_args(argv)


def _measure(arguments: argparse.Namespace, folder: Path) -> tuple[list[Corrected], int, int]:
    flags = {"base": arguments.base, "device": arguments.device}
    served = {"engine": arguments.engine, "threads": arguments.threads, "feedback_count": 1}
    count = arguments.corrections
    task = load_task(_TASK, default_cache_dir(), train=arguments.train, heldout=count + arguments.others)
    asked = [Question(png_bytes(item.picture), item.question, item.answer) for item in task.heldout]
    with told(count + 4) as teller, ExitStack() as stack:
        teller.at("starting gateway and worker")
        gateway = stack.enter_context(GatewayProcess(folder, {**flags, **served}))
        worker = stack.enter_context(WorkerProcess(folder, flags))
        client = stack.enter_context(Client(gateway.url))
        teller.step()
        teller.at(f"learning {len(task.train)} {_TASK}")
        teach(client, write_llava_zip(task.train, folder / "digits.zip"), _TASK, asked[0], "strata", None)
        teller.step()
        before = asyncio.run(_answers(gateway.url, asked))
        teller.step()
        corrected = [
            _correct(gateway.url, worker, question, given, teller)
            for question, given in zip(asked[:count], before[:count], strict=True)
        ]
        after = asyncio.run(_answers(gateway.url, asked))
        teller.step()
    pairs = zip(before[count:], after[count:], strict=True)
    return corrected, sum(old != new for old, new in pairs), len(asked) - count


async def _answers(url: str, questions: Sequence[Question]) -> list[str]:
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        return [(await ask(client, question, "strata")).text for question in questions]


def _correct(url: str, worker: WorkerProcess, question: Question, given: str, teller: Teller) -> Corrected:
    """Post another answer than the one given, and wait until it is the answer."""
    right = next(name for name in CLASSES[_TASK] if not matches(given, name))
    teller.at(f"correcting {given} to {right}")
    picture = base64.b64encode(question.picture_png).decode()
    body = {"rating": "down", "question": question.text, "image": f"data:image/png;base64,{picture}"}
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        began = time.monotonic()
        answer = client.post("/v1/feedback", json={**body, "correction": right, "task": _TASK})
        if answer.status_code >= 400:
            raise LearningFailed(f"the correction was refused: {answer.text[:300]}")
        job = answer.json()["job"]
        while not matches(asyncio.run(_answers(url, [question]))[0], right):
            worker.check()
            told_of = client.get(f"/v1/jobs/{job}").json()
            if time.monotonic() - began > _LIMIT_SECONDS or _is_refused(told_of):
                raise LearningFailed(f"{given} was not corrected to {right}: {json.dumps(told_of)[:500]}")
            time.sleep(0.2)
        seconds = time.monotonic() - began
        parts = client.get(f"/v1/jobs/{job}").json().get("seconds") or {}
    teller.step()
    return Corrected(given, right, seconds, {name: float(value) for name, value in parts.items()})


def _is_refused(job: dict[str, Any]) -> bool:
    """Tell whether a job ended without a version that is served."""
    if job["status"] in ("failed", "cancelled"):
        return True
    return job["status"] == "succeeded" and not (job.get("gate") or {}).get("passed", False)


def as_text(corrected: Sequence[Corrected], changed: int, asked: int) -> str:
    """Lay the seconds out as Markdown, with the parts of the jobs in the order they ran."""
    names = list(dict.fromkeys(name for one in corrected for name in one.parts))
    parts = (Spread.of(one.parts[name] for one in corrected if name in one.parts) for name in names)
    whole = Spread.of(one.seconds for one in corrected)
    heads = [f"until answered (s, goal {GOAL_SECONDS:.0f} on a GPU)", *names]
    rows = (heads, ["---"] * len(heads), [spread.shown(digits=1) for spread in (whole, *parts)])
    table = [f"| {' | '.join(row)} |" for row in rows]
    tail = f"{len(corrected)} corrections; {changed} of {asked} other answers changed"
    return "\n".join([*table, "", tail])


if __name__ == "__main__":
    sys.exit(main())
