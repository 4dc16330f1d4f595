"""Teach a running Strata what the pictures in a folder show, and wait until it is served.

The folder has one subfolder per answer (``birds/robin/1.png`` is answered with "robin"). What is sent is
plain LLaVA data: a zip with ``data.json`` and the pictures.

Usage: python examples/teach.py FOLDER TASK "What is shown?"
Environment: STRATA_URL (http://127.0.0.1:8000), STRATA_API_KEY if the server asks for one.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
import zipfile
from pathlib import Path

import httpx

SERVER = os.environ.get("STRATA_URL", "http://127.0.0.1:8000")
KEY = {"authorization": f"Bearer {os.environ.get('STRATA_API_KEY', 'none')}"}
ENDED = {"succeeded", "failed", "cancelled"}


def pack(folder: Path, question: str) -> bytes:
    """Return the zip of a data set in LLaVA format."""
    rows = []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, picture in enumerate(sorted(folder.glob("*/*.*"))):
            name = f"images/{number}{picture.suffix}"
            archive.write(picture, name)
            turns = [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": picture.parent.name},
            ]
            rows.append({"id": str(number), "image": name, "conversations": turns})
        archive.writestr("data.json", json.dumps(rows))
    return buffer.getvalue()


def answer_of(response: httpx.Response) -> dict:
    """Return the server's answer; if it is an error, end with the server's words."""
    if not response.is_error:
        return response.json()
    try:
        sys.exit(f"error: {response.json()['error']['message']}")
    except (ValueError, KeyError, TypeError):
        sys.exit(f"error: {response.url} answered with status {response.status_code}")


def teach(folder: Path, task: str, question: str) -> dict:
    """Send the data, print each phase, and return the finished job."""
    with httpx.Client(base_url=SERVER, headers=KEY, timeout=600.0) as client:
        sent = client.post(f"/v1/tasks/{task}/batches", files={"file": ("data.zip", pack(folder, question))})
        job, phase = answer_of(sent), None
        while job["status"] not in ENDED:
            time.sleep(0.3)
            job = answer_of(client.get(f"/v1/fine_tuning/jobs/{job['id']}"))
            if job["phase"] != phase:
                phase = job["phase"]
                print(phase or job["status"], flush=True)
    gate = job.get("gate") or {}
    print(
        f"{job['status']}: version {job['result_version']}, promoted: {gate.get('promotion') == 'promoted'}"
    )
    return job


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        teach(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    except (httpx.HTTPError, OSError) as error:
        sys.exit(f"error: {error}")
