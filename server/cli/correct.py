"""``strata correct``: say what the right answer about a picture is."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapter_store.errors import StrataError
from adapter_store.names import check_task_name
from server.cli.arguments import add_verb, client_of
from server.cli.ask import image_part
from server.cli.client import Client, RequestRefused
from server.cli.output import clean, duration, print_json, stderr, stdout
from server.cli.teach import STATUSES, report_job
from server.cli.watch import LostSight, patiently

_NEVER_QUEUED = ("replaced", "refused")
_SOON_SECONDS = 0.5
_POLL_SECONDS = 2.0
_PATIENCE_SECONDS = 30.0
"""How much longer than promised a correction may wait for its place in the queue."""


class NotQueued(LostSight):
    """Report a correction that is kept, but that no job has yet."""

    code = "not_queued"


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
    parser.epilog = f"{STATUSES} Also 4: the correction is kept, but no job has it yet."


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
        given = client.post("/v1/feedback", json=body)
        if args.now and given["status"] == "pending":
            given = _sent_now(client, given, is_patient=args.wait)
        if args.wait:
            job = given["job"] or _until_queued(client, given, quiet=args.json)
            return report_job(args, client, {"id": job, "task": given["task"]})
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
    age = f" or in {duration(_seconds_left(pending))}" if pending["sent_after_seconds"] else ""
    noun = "correction waits" if pending["count"] == 1 else "corrections wait"
    count = f"{pending['count']} {noun} for {clean(task)}"
    return f"kept: {count}; queued once there are {pending['sent_at_count']}{age}, or with --now"


def _sent_now(client: Client, given: dict[str, Any], *, is_patient: bool) -> dict[str, Any]:
    """Queue what waits of the task; return the correction with its job, which others may have sent."""

    def send() -> dict[str, Any]:
        try:
            client.post(f"/v1/feedback/{given['task']}/send")
        except RequestRefused:
            found = _looked(client, given)
            if found["job"] is None:
                raise
            return found
        return _looked(client, given)

    job = (_patiently(send) if is_patient else send())["job"]
    return given if job is None else {**given, "status": "queued", "job": job}


def _looked(client: Client, given: dict[str, Any]) -> dict[str, Any]:
    """Return how it stands with the correction; raise StrataError if no job has it nor will have it."""
    task = given["task"]
    try:
        found = client.get(f"/v1/feedback/{task}/{given['id']}")
    except RequestRefused as error:
        raise StrataError(f"the correction cannot be followed any more: {error.message}") from None
    if found["status"] in _NEVER_QUEUED:
        raise StrataError(f"the correction is in no job of {task}: {'; '.join(map(str, found['reasons']))}")
    return found


def _patiently(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return patiently(
        call,
        stderr.print,
        meanwhile="the correction is kept",
        lost="the correction is kept, and whether a job has it is not known: look with: strata jobs",
    )


def _until_queued(client: Client, given: dict[str, Any], *, quiet: bool) -> str:
    """Return the job that learns a correction which waits for others; show how long that may take.

    Raises:
        NotQueued: it is not queued by its age here, or not in time.
        LostSight: the gateway was away for too long.
        StrataError: it was replaced or set aside.
    """
    task, pending = given["task"], given["pending"]
    if not pending["sent_after_seconds"]:
        text = f"queued once {pending['sent_at_count']} of {task} wait and never by age; add --now"
        raise NotQueued(f"the correction is kept, and {text}")
    longest = _seconds_left(pending) + _PATIENCE_SECONDS
    deadline = time.monotonic() + longest
    if not quiet:
        stderr.print(_kept(task, pending))
    with stderr.status("") as shown:
        while (asked := time.monotonic()) < deadline:
            found = _patiently(lambda: _looked(client, given))
            if found["job"] is not None:
                return str(found["job"])
            left = _seconds_left(found["pending"])
            shown.update("" if quiet else f"waits for others, {duration(left)} left")
            deadline += time.monotonic() - asked  # a gateway that is away cannot send it
            time.sleep(min(_POLL_SECONDS, max(_SOON_SECONDS, left)))
    raise NotQueued(
        f"the correction is kept, but was not queued within {duration(longest)}; look at {client.url}/ready, "
        "and at what became of it with: strata jobs"
    )


def _seconds_left(pending: dict[str, Any]) -> float:
    return max(0.0, pending["sent_after_seconds"] - pending["oldest_seconds"])
