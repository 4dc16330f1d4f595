"""``strata export | import``: tasks and requests as PEFT LoRA folders, and such folders as tasks."""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import httpx

from adapter_store.errors import InputError, StrataError
from adapter_store.lora import ABOUT_FILE, CONFIG_FILE, PICKLE_ADVICE, README_FILE, TENSORS_FILE
from adapter_store.names import check_task_name, check_version_id
from server.cli.arguments import add_verb, client_of
from server.cli.ask import image_part
from server.cli.client import Client
from server.cli.output import clean, print_json, stderr, stdout
from server.cli.teach import UPLOAD_TIMEOUT_SECONDS, as_file, once, report_job

_WRITTEN = (CONFIG_FILE, TENSORS_FILE, README_FILE, ABOUT_FILE)
_PICKLED = "adapter_model.bin"


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    text = "write a task, or what answers one question, as a PEFT LoRA folder"
    export = add_verb(verbs, "export", text, _export, client=True)
    export.add_argument("question", nargs="?", metavar="QUESTION", help="export what answers this question")
    export.add_argument("--task", metavar="NAME", help="export this task")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    export.add_argument("--version", metavar="VERSION", help="v1, v2, ... (default: the served one)")
    export.add_argument("--image", type=Path, metavar="FILE", help="the picture asked about")
    taken = add_verb(verbs, "import", "make a PEFT LoRA folder a new task", _import, client=True)
    taken.add_argument("folder", type=Path, metavar="LORA_FOLDER", help=f"holds {CONFIG_FILE}")
    taken.add_argument("--task", required=True, metavar="NAME", help="a new task")
    taken.add_argument(
        "--examples",
        type=Path,
        required=True,
        metavar="FILE",
        help="data set of the task: places its keys and measures it",
    )
    taken.add_argument("--wait", action="store_true", help="show the phases until it is served")


def _export(args: argparse.Namespace) -> int:
    if (args.task is None) == (args.question is None):
        raise InputError("give either --task NAME or a question", param="task")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise InputError(f"{args.out} is not an empty folder; name a new one with --out", param="out")
    with client_of(args, UPLOAD_TIMEOUT_SECONDS) as client:
        answer = _export_task(args, client) if args.question is None else _export_request(args, client)
    about = _unpack(answer.content, args.out)
    if args.json:
        print_json({"folder": str(args.out), **about})
        return 0
    what = f"task {about['task']}" if args.question is None else "what answers the question"
    stdout.print(f"{clean(what)} of {clean(about['version'])}: {clean(str(args.out))}, rank {about['rank']}")
    for note in about["notes"]:
        stderr.print(f"[yellow]note[/]: {clean(str(note))}")
    return 0


def _export_task(args: argparse.Namespace, client: Client) -> httpx.Response:
    if args.image is not None:
        raise InputError("--image belongs to a question, not to --task", param="image")
    task = check_task_name(args.task)
    version = args.version or client.get(f"/v1/adapters/{args.name}/aliases/stable")["version"]
    path = f"/v1/adapters/{args.name}/versions/{check_version_id(version)}/lora"
    return client.request("GET", path, params={"task": task})


def _export_request(args: argparse.Namespace, client: Client) -> httpx.Response:
    version = f"@{check_version_id(args.version)}" if args.version else ""
    body = {"question": args.question, "model": f"{args.name}{version}"}
    if args.image is not None:
        body["image"] = image_part(args.image)["image_url"]["url"]
    return client.request("POST", "/v1/routing:export", json=body)


def _unpack(content: bytes, folder: Path) -> dict[str, Any]:
    """Write the files that an export has, and no others, and return what it says of itself."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = {name: archive.read(name) for name in _WRITTEN}
        about = json.loads(files[ABOUT_FILE])
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise StrataError(f"the answer is no exported LoRA ({error}): is it a Strata server?") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}", param="out") from None
    return about


def _import(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        return report_job(args, client, _send(args, client))


def _send(args: argparse.Namespace, client: Client) -> dict[str, Any]:
    """Upload the LoRA and its examples and return the accepted job."""
    path = f"/v1/tasks/{check_task_name(args.task)}/lora"
    try:
        with (
            tempfile.TemporaryFile() as adapter,
            as_file(args.examples) as packed,
            packed.open("rb") as examples,
        ):
            _pack(args.folder, adapter)
            files = {"adapter": ("lora.zip", adapter), "file": (packed.name, examples)}
            return client.post(path, files=files, headers=once(), timeout=UPLOAD_TIMEOUT_SECONDS)
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}", param="file") from None


def _pack(folder: Path, target: Any) -> None:
    """Pack the two files that count; the server names what is missing or wrong."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name the folder of a LoRA", param="folder")
    if (folder / _PICKLED).exists() and not (folder / TENSORS_FILE).exists():
        raise InputError(f"{folder / _PICKLED}: {PICKLE_ADVICE}", param="folder")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in (CONFIG_FILE, TENSORS_FILE):
            if (folder / name).is_file():
                archive.write(folder / name, name)
    target.seek(0)
