"""The queue of one lineage: Redis Streams with a consumer group, leases and fencing tokens.

Delivery is at least once: a job whose worker died is handed out again when its lease
has run out. Taking effect is exactly once: each claim has a higher fencing token than
the one before, a stale token can write nothing, and publishing a version is idempotent
per job. Only one job of a lineage runs at a time, however many workers wait.

Works with Redis 6.2 and newer. Every Redis fault is raised as QueueUnavailable.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

import redis

from adapter_store.errors import ConflictError, InputError, NotFoundError
from adapter_store.jobs import scripts
from adapter_store.jobs.claim import Claim
from adapter_store.jobs.connection import guarded
from adapter_store.jobs.keys import DEAD_KEPT, EVENTS_SECONDS, GROUP
from adapter_store.jobs.ledger import Ledger, encode_job, missing, parse
from adapter_store.jobs.presence import Presence
from adapter_store.jobs.record import Job, JobEvent, JobStatus, check_job_id
from adapter_store.names import check_lineage

EVENT_ID = re.compile(r"[0-9]{1,16}(-[0-9]{1,16})?")
_LARGEST_PAGE = 1001
"""A page of the API and one more, which tells whether there are more."""
_POLL_SECONDS = 0.5

Jobs = list[Job]
JobEvents = list[JobEvent]
Records = list[tuple[str, dict[str, str]]]


class JobQueue:
    """Accept the jobs of one lineage and hand them out, one at a time.

    Args:
        client: A client from ``connect`` (it has to decode answers to text).
        lineage: The model name.
        lease_seconds: How long a silent worker keeps its job; heartbeats renew it.
        max_deliveries: How many workers may take a job up before it is given up as failed.
        presence: This process's place among the workers of its home: a claim whose worker has certainly ended
            is then taken over before its lease runs out.
    """

    def __init__(
        self,
        client: redis.Redis,
        lineage: str,
        *,
        lease_seconds: float = 30,
        max_deliveries: int = 3,
        presence: Presence | None = None,
    ) -> None:
        self.lineage = check_lineage(lineage)
        self.lease_seconds = lease_seconds
        self.max_deliveries = max_deliveries
        self._presence = presence
        self._client = client
        self._ledger = Ledger(client, lineage)
        self._keys = self._ledger.keys

    def submit(self, job: Job) -> Job:
        """Queue a job once and return it as queued.

        The same id or the same idempotency key again changes nothing and returns the
        job that is there already, which then may have another id.

        Raises:
            InputError: The job belongs to another lineage.
            ConflictError: The idempotency key was used for a different request.
            QueueUnavailable: Redis does not answer or is full. It may have queued the job all the same, if
                only its answer was lost: ``get`` tells.
        """
        waiting = {"status": JobStatus.QUEUED, "phase": None, "started_at": None, "attempts": 0}
        return self._put(job.model_copy(update=waiting), enqueue=True)

    def restore(self, job: Job) -> Job:
        """Put back the record of a finished job that Redis lost, without queueing it."""
        if not job.status.terminal:
            raise InputError(
                f"job {job.id} is {job.status}: only a finished job is restored, submit it instead"
            )
        return self._put(job, enqueue=False)

    def retire(self, job: Job) -> None:
        """Let an ended job whose outcome is in the journal leave Redis in time, with most metrics at once."""
        keys = self._keys
        with guarded(f"retire job {job.id}"):
            touched = [keys.job(job.id), keys.events(job.id), keys.idempotency(job.idempotency_key)]
            self._ledger.run(scripts.RETIRE, touched, [job.id, int(leaves_at(job))])

    def get(self, job_id: str) -> Job:
        """Return a job; raise NotFoundError."""
        return self._ledger.get(job_id)

    def list(self, limit: int = 20, after: str | None = None) -> Jobs:
        """Return up to ``limit`` jobs, newest first; ``after`` is the last job of the page before.

        Raises:
            NotFoundError: There is no job ``after``.
        """
        count = min(max(limit, 1), _LARGEST_PAGE)
        found: Jobs = []
        # Records that cannot be read are left out, and their places filled: a short page means the end.
        while len(found) < count:
            missed = count - len(found)
            with guarded("list the jobs"):
                records = self._page(missed, after)
            found += [job for job_id, fields in records if (job := _parsed(fields, job_id))]
            if len(records) < missed:
                break
            after = records[-1][0]
        return found

    def _page(self, count: int, after: str | None) -> Records:
        """Return the records of up to ``count`` ids; ids whose record has ended leave the index first."""
        records = self._records(count, after)
        while left := [job_id for job_id, fields in records if not fields]:
            self._ledger.run(scripts.PRUNE, [self._keys.index], [self._keys.job_prefix, *left])
            records = self._records(count, after)
        return records

    def _records(self, count: int, after: str | None) -> Records:
        start = 0
        if after is not None:
            rank: Any = self._client.zrevrank(self._keys.index, check_job_id(after))
            if rank is None:
                raise missing(after)
            start = int(rank) + 1
        ids: Any = self._client.zrevrange(self._keys.index, start, start + count - 1)
        pipeline = self._client.pipeline(transaction=False)
        for job_id in ids:
            pipeline.hgetall(self._keys.job(job_id))
        return [*zip(ids, pipeline.execute(), strict=True)]

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once while it waits, by a flag that the worker reads while it runs.

        Canceling twice is fine.

        Raises:
            NotFoundError: No such job.
            ConflictError: The job has succeeded or failed already.
        """
        check_job_id(job_id)
        with guarded(f"cancel job {job_id}"):
            keys = [self._keys.job(job_id), self._keys.stream]
            answer = self._ledger.run(scripts.CANCEL, keys, [GROUP, repr(time.time())])
        if answer == "missing":
            raise missing(job_id)
        job = self.get(job_id)
        if answer == "terminal" and job.status is not JobStatus.CANCELLED:
            raise ConflictError(
                f"job {job_id} has {job.status} already and cannot be cancelled", param="job_id"
            )
        return job

    def events(
        self, job_id: str, after: str | None = None, limit: int = 100, *, newest_first: bool = False
    ) -> JobEvents:
        """Return the events of a job, oldest first; its last 1000 are kept.

        Args:
            job_id: The job.
            after: The last event of the page before; the next ones in the same order are returned.
            limit: How many events at most.
            newest_first: The other order; what follows ``after`` is then older than it.

        Raises:
            NotFoundError: No such job.
            InputError: ``after`` is no event id.
        """
        if after is not None and not EVENT_ID.fullmatch(after):
            raise InputError(f"event id {after[:40]!r} is not one: use the id of an event", param="after")
        check_job_id(job_id)
        count = min(max(limit, 1), _LARGEST_PAGE)
        with guarded(f"read the events of job {job_id}"):
            keys = [self._keys.events(job_id), self._keys.job(job_id)]
            words = [f"({after}" if after is not None else "", count, int(newest_first)]
            answer: str = self._ledger.run(scripts.EVENTS, keys, words)
        if answer == "missing":
            raise missing(job_id)
        return [_event(entry, fields) for entry, fields in json.loads(answer)]

    def depth(self) -> int:
        """Return how many jobs wait for a worker; the one that runs does not count."""
        return self._waiting()[0]

    def oldest_seconds(self) -> float:
        """Return how long the longest waiting job has waited; 0.0 if none waits."""
        return self._waiting()[1]

    def buried(self) -> int:
        """Return how many entries Redis saw given up: jobs without a result, and foreign ones."""
        with guarded("count the dead letters"):
            count: Any = self._client.get(self._keys.buried)
        return int(count or 0)

    def server_run(self) -> str:
        """Return which run of Redis answers: another one may have lost what was queued."""
        with guarded("ask Redis for its run"):
            info: Any = self._client.info("server")
        return str(info.get("run_id", ""))

    def claim(self, worker: str, block_seconds: float = 0) -> Claim | None:
        """Take the next job, waiting up to ``block_seconds`` for one; None if there is none to have.

        Jobs whose worker fell silent come first. While a job of the lineage runs,
        nothing is handed out. What is no job of ours, and what was delivered more than
        ``max_deliveries`` times, goes to the dead letters on the way.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        deadline = time.monotonic() + block_seconds
        while True:
            claim = self._try_claim(worker)
            left = deadline - time.monotonic()
            if claim is not None or left <= 0:
                return claim
            with guarded("wait for a job"):
                pause = max(int(min(left, _POLL_SECONDS) * 1000), 1)
                self._client.xread({self._keys.stream: "$"}, count=1, block=pause)

    def _try_claim(self, worker: str) -> Claim | None:
        names = self._keys
        keys = [names.stream, names.dead, names.fence, names.writer, names.buried, names.holder]
        lease = int(self.lease_seconds * 1000)
        prefixes = [self._keys.job_prefix, self._keys.events_prefix]
        owner = self._presence.name if self._presence else ""
        while True:
            with guarded("claim a job"):
                arguments = [GROUP, worker, lease, self.max_deliveries, *prefixes, owner]
                answer = self._ledger.run(scripts.CLAIM, keys, arguments)
            if answer[0] == "busy" and self._lapsed(worker, *answer[1:]):
                continue
            if answer[0] != "claim":
                return None
            job_id, entry, token = answer[1:]
            try:
                job = self.get(job_id)
            except (NotFoundError, InputError) as error:
                self._bury(job_id, entry, token, error.message)
                continue
            return Claim(
                self._ledger,
                job,
                fence=int(token),
                entry=entry,
                worker=worker,
                lease_seconds=self.lease_seconds,
            )

    def _lapsed(
        self, worker: str, job_id: str = "", entry: str = "", token: str = "", owner: str = ""
    ) -> bool:
        """End the lease of the claim that runs if its worker has ended; tell whether it was done."""
        if self._presence is None or not self._presence.has_ended(owner):
            return False
        names, lease = self._keys, int(self.lease_seconds * 1000)
        keys = [names.job(job_id), names.stream, names.fence, names.writer]
        with guarded(f"take over job {job_id}"):
            return self._ledger.run(scripts.LAPSE, keys, [GROUP, worker, entry, token, lease]) == 1

    def _bury(self, job_id: str, entry: str, token: str, reason: str) -> None:
        """Close a claimed job whose record is not ours to read."""
        failed = ["status", '"failed"', "finished_at", repr(time.time())]
        keys = [self._keys.job(job_id), self._keys.stream, self._keys.fence, self._keys.writer]
        letter: Any = {"entry": entry, "job": job_id[:200], "reason": reason[:500], "payload": "[]"}
        with guarded(f"give up job {job_id[:90]!r}"):
            self._ledger.run(scripts.FINISH, keys, [GROUP, entry, token, *failed])
            self._client.xadd(self._keys.dead, letter, maxlen=DEAD_KEPT, approximate=False)
            self._client.incr(self._keys.buried)

    def _put(self, job: Job, *, enqueue: bool) -> Job:
        if job.lineage != self.lineage:
            raise InputError(f"job {job.id} is for {job.lineage!r}, this queue serves {self.lineage!r}")
        key = job.idempotency_key
        keyed = int(key is not None)
        arguments = [job.id, job.created_at, keyed, job.fingerprint, self._keys.job_prefix, int(enqueue)]
        with guarded(f"queue job {job.id}"):
            keys = [self._keys.job(job.id), self._keys.stream, self._keys.index, self._keys.idempotency(key)]
            kind, holder, *record = self._ledger.run(scripts.SUBMIT, keys, [*arguments, *encode_job(job)])
        if kind == "conflict":
            raise ConflictError(
                f"the idempotency key belongs to another request (job {holder}): use a new key",
                param="Idempotency-Key",
            )
        flat = record[0]
        return parse(dict(zip(flat[::2], flat[1::2], strict=True)), holder)

    def _waiting(self) -> tuple[int, float]:
        with guarded("look at the queue"):
            depth, first = self._ledger.run(scripts.WAITING, [self._keys.stream, self._keys.writer], [GROUP])
            clock: Any = self._client.time()
        return depth, max(clock[0] + clock[1] / 1e6 - _seconds_of(first), 0.0) if first else 0.0


def leaves_at(job: Job) -> float:
    """Return when an ended job leaves Redis, in seconds since 1970."""
    return (job.finished_at or job.created_at) + EVENTS_SECONDS


def _parsed(fields: dict[str, str], job_id: str) -> Job | None:
    try:
        return parse(fields, job_id)
    except NotFoundError:
        return None


def _seconds_of(entry: str) -> float:
    return int(entry.partition("-")[0]) / 1000


def _event(entry: str, flat: list[str]) -> JobEvent:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    data = json.loads(fields.get("data", "{}"))
    known: Any = {name: fields[name] for name in ("level", "type", "message")}
    return JobEvent(id=entry, created_at=_seconds_of(entry), data=data, **known)
