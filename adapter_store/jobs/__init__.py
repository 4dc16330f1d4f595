"""Jobs: the record of one training request, and the queue that hands it to one worker at a time."""

from adapter_store.jobs.claim import Claim
from adapter_store.jobs.connection import connect
from adapter_store.jobs.journal import JobJournal
from adapter_store.jobs.presence import Presence
from adapter_store.jobs.queue import JobQueue
from adapter_store.jobs.record import Job, JobError, JobEvent, JobStatus, check_job_id, new_job_id

__all__ = [
    "Claim",
    "Job",
    "JobError",
    "JobEvent",
    "JobJournal",
    "JobQueue",
    "JobStatus",
    "Presence",
    "check_job_id",
    "connect",
    "new_job_id",
]
