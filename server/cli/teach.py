"""``strata submit | jobs``: hand over examples and see what becomes of them."""

from __future__ import annotations

import argparse
import json
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapter_store.errors import InputError, StrataError
from adapter_store.names import check_task_name
from server.cli.arguments import add_verb, at_least_one, client_of
from server.cli.client import Client
from server.cli.output import clean, duration, moment, print_json, stderr, stdout, table
from server.cli.watch import last_events, show_job
from server.jobs.hyperparameters import from_text

UPLOAD_TIMEOUT_SECONDS = 600.0
_SHOWN_EVENTS = 20
EXIT_NOT_SERVED = 3
_CHOSEN = (
    "no --task was given: by the questions and pictures the service chooses the known task that they are "
    "most like, or opens a new one; which one tells"
)
STATUSES = (
    "Exit status with --wait: 0 learned and served, 1 failed or cancelled, 2 wrong command or data, "
    "3 learned but not served: the gate held the version back, or stable was moved meanwhile, "
    "4 no server answered for 5 minutes: the job may go on."
)


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    submit = add_verb(
        verbs, "submit", "teach: hand over a data set file or folder as a task", _submit, client=True
    )
    submit.epilog = STATUSES
    submit.add_argument(
        "file", type=Path, metavar="FILE", help="JSON, JSONL, CSV, parquet, zip, tar, or a folder"
    )
    submit.add_argument(
        "--task",
        metavar="NAME",
        help="a new or known task; without it the service chooses one by the questions and pictures",
    )
    submit.add_argument("--question", metavar="TEXT", help="asked where the data has none; goes with --task")
    submit.add_argument(
        "--wait", action="store_true", help="show phases, loss and time left until it is served"
    )
    submit.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyperparameter")
    jobs = add_verb(verbs, "jobs", "list training jobs, or show, cancel or follow one", _jobs, client=True)
    jobs.epilog = STATUSES
    jobs.add_argument("id", nargs="?", metavar="JOB", help="show this job with its last events")
    jobs.add_argument("--cancel", action="store_true", help="cancel it")
    jobs.add_argument("--wait", action="store_true", help="follow it to its end")
    jobs.add_argument("--limit", type=at_least_one, default=20, metavar="N", help="how many to list")


def submit_file(
    client: Client,
    file: Path,
    task: str | None,
    hyperparameters: dict[str, Any] | None = None,
    question: str | None = None,
) -> dict[str, Any]:
    """Upload a data set and return the accepted job; every call asks for a job of its own.

    Its Idempotency-Key makes one job of the call, however often something on the way repeats the request.

    Args:
        client: Connection to the gateway.
        file: Data set file; a folder is packed as a zip first.
        task: Task to teach; None lets the service choose a known one, or open a new one.
        hyperparameters: Settings of the method for this job.
        question: Asked where the data has none; needs a task.

    Raises:
        InputError: If the file cannot be read or has faults, or a question comes without a task.
    """
    if question is not None and task is None:
        raise InputError("--question goes with --task NAME; name the task, too", param="question")
    # One JSON field: a setting that is called like a part of the form is refused, not taken for that part.
    fields = {"hyperparameters": json.dumps(hyperparameters)} if hyperparameters else {}
    try:
        with as_file(file) as packed, packed.open("rb") as stream:
            if task is None:
                return _submit_undecided(client, packed.name, stream, hyperparameters or {})
            return client.post(
                f"/v1/tasks/{check_task_name(task)}/batches",
                files={"file": (packed.name, stream)},
                data=fields if question is None else {**fields, "question": question},
                headers=once(),
                timeout=UPLOAD_TIMEOUT_SECONDS,
            )
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}", param="file") from None


def _submit_undecided(
    client: Client, name: str, stream: Any, hyperparameters: dict[str, Any]
) -> dict[str, Any]:
    uploaded = client.post(
        "/v1/files",
        files={"file": (name, stream)},
        data={"purpose": "fine-tune"},
        timeout=UPLOAD_TIMEOUT_SECONDS,
    )
    body: dict[str, Any] = {
        "training_file": uploaded["id"],
        "model": client.get("/v1/models")["data"][0]["id"],
    }
    if hyperparameters:
        body["method"] = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    return client.post("/v1/fine_tuning/jobs", json=body, headers=once(), timeout=UPLOAD_TIMEOUT_SECONDS)


def once() -> dict[str, str]:
    """Return a new Idempotency-Key: one job of the call, however often something repeats the request."""
    return {"Idempotency-Key": uuid.uuid4().hex}


@contextmanager
def as_file(path: Path) -> Iterator[Path]:
    """Yield a data set as one file: the file itself, or a zip of the folder, removed at the end."""
    if not path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield _pack(path, Path(scratch))


def _pack(folder: Path, scratch: Path) -> Path:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        raise InputError(f"the folder {folder} is empty", param="file")
    target = scratch / f"{folder.resolve().name}.zip"
    # Zip knows no time before 1980, and files unpacked from elsewhere often have 1970.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for path in files:
            archive.write(path, path.relative_to(folder))
    return target


def _hyperparameters(pairs: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise InputError(f"--set {pair!r} is not NAME=VALUE", param="set")
        values[name] = from_text(text)
    return values


def _submit(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        job = submit_file(client, args.file, args.task, _hyperparameters(args.set), args.question)
        if args.task is None and not args.json:
            stderr.print(f"{_CHOSEN}: strata jobs {clean(job['id'])}")
        return report_job(args, client, job)


def report_job(args: argparse.Namespace, client: Client, job: dict[str, Any]) -> int:
    """Write what became of an accepted job, after its end with ``--wait``; return the exit status."""
    if args.wait:
        job, _ = show_job(client, job["id"], f"task {job_task(job)}", None if args.json else stderr)
    if args.json:
        print_json(job)
    elif args.wait:
        _show_end(job)
    else:
        stdout.print(f"accepted as {clean(job['id'])}; follow it with: strata jobs {clean(job['id'])} --wait")
    return _status(job)


def job_task(job: dict[str, Any]) -> str:
    """Return the task of a job, or a dash while the service has not decided."""
    return str(job.get("task") or (job.get("metadata") or {}).get("task") or "-")


def _status(job: dict[str, Any]) -> int:
    if job["status"] in {"failed", "cancelled"}:
        return 1
    return EXIT_NOT_SERVED if job["status"] == "succeeded" and not _is_served(job) else 0


def _is_served(job: dict[str, Any]) -> bool:
    return job.get("outcome") == "learned"


def _show_end(job: dict[str, Any]) -> None:
    if job["status"] != "succeeded":
        raise StrataError(f"job {job['id']} {job['status']}: {_why(job)}")
    gate = job.get("gate") or {}
    version = job.get("result_version") or job.get("fine_tuned_model")
    if _is_served(job):
        stdout.print(
            f"[green]taught[/]: {clean(str(version))} was served, with the task {clean(job_task(job))}"
        )
        return
    if job.get("outcome") == "not_served":
        stdout.print(
            f"[yellow]taught, not served[/]: {clean(str(version))} passed the gate, but stable was moved"
        )
    else:
        reasons = "; ".join(map(str, gate.get("reasons", []))) or "no reason was recorded"
        stdout.print(f"[yellow]held back[/]: {clean(str(version))}, because {clean(reasons)}")
    stdout.print(f"to serve it all the same: strata promote {clean(str(version))}")


def _why(job: dict[str, Any]) -> str:
    if job.get("status") == "cancelled":
        return "somebody cancelled it; stable is as it was"
    return str((job.get("error") or {}).get("message") or "no reason was recorded")


def _jobs(args: argparse.Namespace) -> int:
    if args.id is None and (args.cancel or args.wait):
        flag = "--cancel" if args.cancel else "--wait"
        raise InputError(
            f"{flag} goes with one job: strata jobs JOB {flag}; strata jobs lists them", param="id"
        )
    if args.cancel and args.wait:
        raise InputError("--cancel and --wait exclude each other: give one of them", param="cancel")
    with client_of(args) as client:
        if args.id is None:
            return _list(args, client)
        if "/" in args.id:
            raise InputError(f"{args.id!r} is no job; strata jobs lists them", param="id")
        if args.cancel:
            job = client.post(f"/v1/fine_tuning/jobs/{args.id}/cancel")
        elif args.wait:
            client.get(f"/v1/fine_tuning/jobs/{args.id}")  # only a job that was seen is waited for
            job, _ = show_job(client, args.id, args.id, None if args.json else stderr)
        else:
            job = client.get(f"/v1/fine_tuning/jobs/{args.id}")
        if args.json:
            print_json(job)
        else:
            _show_job(job, last_events(client, args.id, _SHOWN_EVENTS))
    return _status(job) if args.wait and not args.cancel else 0


def _list(args: argparse.Namespace, client: Client) -> int:
    jobs = client.get("/v1/fine_tuning/jobs", limit=args.limit)["data"]
    if args.json:
        print_json(jobs)
    elif not jobs:
        stdout.print("no jobs yet; teach something with: strata submit FILE --task NAME --wait")
    else:
        rows = [
            (
                j["id"],
                job_task(j),
                j["status"],
                j.get("phase"),
                j.get("result_version"),
                moment(j.get("created_at")),
            )
            for j in jobs
        ]
        stdout.print(table("", ("job", "task", "status", "phase", "version", "created"), rows))
    return 0


def _show_job(job: dict[str, Any], events: list[dict[str, Any]]) -> None:
    stdout.print(f"[bold]{clean(job['id'])}[/]  task {clean(job_task(job))}  {job['status']}")
    if job.get("error"):
        stdout.print(f"  error     {clean(_why(job))}")
    for name in ("decision", "phase", "result_version"):
        if job.get(name):
            stdout.print(f"  {name.split('_')[-1]:9} {clean(str(job[name]))}")
    for phase, seconds in (job.get("seconds") or {}).items():
        stdout.print(f"  {clean(phase):9} {duration(seconds)}")
    for event in events:
        stdout.print(f"  [dim]{moment(event.get('created_at'))}[/] {clean(str(event.get('message', '')))}")
