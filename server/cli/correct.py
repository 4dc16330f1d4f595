"""``strata correct``: say what the right answer about a picture is."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from adapter_store.errors import StrataError
from adapter_store.names import check_task_name
from server.cli.arguments import add_verb, client_of
from server.cli.ask import image_part
from server.cli.client import Client
from server.cli.output import clean, duration, print_json, stderr, stdout
from server.cli.teach import STATUSES, report_job

_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 30.0
"""How much longer than promised a correction may wait for its place in the queue."""


def add_verbs(verbs: Any) -> None:
    """Add the verb of this module."""
    parser = add_verb(verbs, "correct", "say the right answer about a picture", _correct, client=True)
    parser.add_argument("question", metavar="QUESTION", help="as it was asked")
    parser.add_argument("right", metavar="ANSWER", help="the right answer")
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="the picture asked about")
    parser.add_argument("--task", metavar="NAME", help="a new or known task (default: the one that answers)")
    parser.add_argument("--now", action="store_true", help="queue what waits of the task at once")
    parser.add_argument(
        "--wait", action="store_true", help="until it is learned, with others; --now makes it the next job"
    )
    parser.epilog = STATUSES


def _correct(args: argparse.Namespace) -> int:
    body = {
        "rating": "down",
        "question": args.question,
        "image": image_part(args.image)["image_url"]["url"],
        "correction": args.right,
    }
    if args.task is not None:
        body["task"] = check_task_name(args.task)
    with client_of(args) as client:
        before = _last_jobs(client) if args.wait else {}
        given = client.post("/v1/feedback", json=body)
        if args.now and given["status"] == "pending":
            job = client.post(f"/v1/feedback/{given['task']}/send")
            given = {**given, "status": "queued", "job": job["id"]}
        if args.wait:
            job_id = given["job"] or _until_queued(client, given, before, quiet=args.json)
            return report_job(args, client, client.get(f"/v1/fine_tuning/jobs/{job_id}"))
    if args.json:
        print_json(given)
        return 0
    if given["status"] == "queued":
        job = clean(str(given["job"]))
        stdout.print(
            f"queued for {clean(str(given['task']))} as {job}; follow it with: strata jobs {job} --wait"
        )
    else:
        stdout.print(_kept(given["task"], given["pending"]))
    return 0


def _kept(task: str, pending: dict[str, Any]) -> str:
    left = max(0.0, pending["sent_after_seconds"] - pending["oldest_seconds"])
    age = f" or in {duration(left)}" if pending["sent_after_seconds"] else ""
    noun = "correction waits" if pending["count"] == 1 else "corrections wait"
    count = f"{pending['count']} {noun} for {clean(task)}"
    return f"kept: {count}; queued once there are {pending['sent_at_count']}{age}, or with --now"


def _last_jobs(client: Client) -> dict[str, str | None]:
    return {found["task"]: found["last_job"] for found in client.get("/v1/feedback")["data"]}


def _until_queued(
    client: Client, given: dict[str, Any], before: dict[str, str | None], *, quiet: bool
) -> str:
    """Return the job that learns a correction which waits for others; show how long that may take.

    Raises:
        StrataError: it is not queued by its age here, or not in time.
    """
    task, pending, began = given["task"], given["pending"], time.monotonic()
    if not pending["sent_after_seconds"]:
        text = f"queued once {pending['sent_at_count']} of {task} wait and never by age; add --now"
        raise StrataError(f"the correction is kept, and {text}")
    longest = pending["sent_after_seconds"] - pending["oldest_seconds"] + _PATIENCE_SECONDS
    if not quiet:
        stderr.print(_kept(task, pending))
    with stderr.status("") as shown:
        while (waited := time.monotonic() - began) < longest:
            for found in client.get("/v1/feedback")["data"]:
                left = found["sent_after_seconds"] - found["oldest_seconds"]
                if found["task"] != task:
                    continue
                if found["last_job"] != before.get(task) and _is_gone(found, waited):
                    return str(found["last_job"])
                shown.update(f"waits for others, {duration(max(0.0, left))} left" if not quiet else "")
            time.sleep(_POLL_SECONDS)
    raise StrataError(
        f"the correction is kept, but was not queued within {duration(longest)}; look at {client.url}/ready, "
        "and at what became of it with: strata jobs"
    )


def _is_gone(found: dict[str, Any], waited_seconds: float) -> bool:
    """Tell whether all that still waits of a task is younger than the correction."""
    return not found["count"] or found["oldest_seconds"] < waited_seconds
