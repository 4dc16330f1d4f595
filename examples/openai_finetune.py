"""Teach a running Strata through the OpenAI client: upload a data set, follow the job, ask what it learned.

Needs the package openai. Usage: python examples/openai_finetune.py DATA_SET_FILE TASK [PICTURE QUESTION]
Environment: STRATA_URL (http://127.0.0.1:8000), STRATA_API_KEY if the server asks for one.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import takewhile
from pathlib import Path

from openai import APIError, OpenAI
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai_chat import talk

SERVER = os.environ.get("STRATA_URL", "http://127.0.0.1:8000")
ENDED = {"succeeded", "failed", "cancelled"}


def teach(client: OpenAI, data: Path, task: str) -> FineTuningJob:
    """Upload ``data``, train on it, print every event once, and return the finished job."""
    file = client.files.create(file=data, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(training_file=file.id, model="strata", metadata={"task": task})
    last = ""
    while True:
        ended = job.status in ENDED  # asked before the events are read, so that none is missed
        for event in events_behind(client, job.id, last):
            last = event.id
            print(event.message, flush=True)
        if ended:
            return job
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)


def events_behind(client: OpenAI, job_id: str, last: str) -> list[FineTuningJobEvent]:
    """Return the events that came after event ``last``, oldest first; the list has the newest first."""
    newest_first = client.fine_tuning.jobs.list_events(job_id)
    return list(takewhile(lambda event: event.id != last, newest_first))[::-1]


def report(client: OpenAI, job: FineTuningJob) -> str:
    """Print what became of the job, and return the name of the model that it made."""
    if job.status != "succeeded" or job.fine_tuned_model is None:
        sys.exit(f"error: the job {job.status}: {job.error.message if job.error else 'nobody said why'}")
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id):
        print(f"made {checkpoint.fine_tuned_model_checkpoint}, last loss {checkpoint.metrics.train_loss}")
    return job.fine_tuned_model


if __name__ == "__main__":
    if len(sys.argv) not in {3, 5}:
        sys.exit(__doc__)
    try:
        with OpenAI(base_url=f"{SERVER}/v1", api_key=os.environ.get("STRATA_API_KEY", "none")) as opened:
            model = report(opened, teach(opened, Path(sys.argv[1]), sys.argv[2]))
            if len(sys.argv) == 5:
                talk(opened, Path(sys.argv[3]), [sys.argv[4]], model)
    except (APIError, OSError) as error:
        sys.exit(f"error: {error}")
