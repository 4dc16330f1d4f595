"""``strata correct``: say what the right answer about a picture is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adapter_store.names import check_task_name
from server.cli.arguments import add_verb, client_of
from server.cli.ask import image_part
from server.cli.output import clean, duration, print_json, stdout


def add_verbs(verbs: Any) -> None:
    """Add the verb of this module."""
    parser = add_verb(verbs, "correct", "say the right answer about a picture", _correct, client=True)
    parser.add_argument("question", metavar="QUESTION", help="as it was asked")
    parser.add_argument("right", metavar="ANSWER", help="the right answer")
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="the picture asked about")
    parser.add_argument("--task", metavar="NAME", help="a new or known task (default: the one that answers)")
    parser.add_argument("--now", action="store_true", help="queue what waits of the task at once")


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
            job = client.post(f"/v1/feedback/{given['task']}/send")
            given = {**given, "status": "queued", "job": job["id"]}
    if args.json:
        print_json(given)
        return 0
    task = clean(str(given["task"]))
    if given["status"] == "queued":
        job = clean(str(given["job"]))
        stdout.print(f"queued for {task} as {job}; follow it with: strata jobs {job} --wait")
        return 0
    pending = given["pending"]
    left = pending["sent_after_seconds"] - pending["oldest_seconds"]
    age = f" or in {duration(max(0.0, left))}" if pending["sent_after_seconds"] else ""
    count = f"{pending['count']} of {pending['sent_at_count']} corrections of {task} wait"
    stdout.print(f"kept: {count}; they are queued once there are enough{age}")
    return 0
