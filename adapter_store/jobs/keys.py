"""Every Redis key that Strata uses, in one place.

``{L}`` is the lineage. The braces are part of the key: they are a cluster hash tag,
so that all keys of a lineage live in one slot and a script may touch them together.

=============================  ======  ===============================================================
key                            type    meaning
=============================  ======  ===============================================================
``strata:{L}:jobs``            stream  one entry per waiting or running job: ``job`` = its id. The
                                       consumer group ``workers`` reads it; a finished job's entry is
                                       acknowledged and deleted.
``strata:{L}:dead``            stream  entries that were given up: ``entry job reason payload``
``strata:{L}:buried``          string  how many entries were ever given up; it only grows
``strata:{L}:index``           zset    every job id, scored by creation time
``strata:{L}:fence``           string  the fencing token of the latest claim; it only grows
``strata:{L}:writer``          string  the token of the claim that runs now; it expires with the lease,
                                       so while it exists nobody else may write to the lineage
``strata:{L}:holder``          hash    who made the latest claim: ``job entry token``, and ``owner``, by
                                       which other workers of its machine see that it has ended
``strata:{L}:idempotency:<k>`` string  the job id of the Idempotency-Key whose sha256 is k
``strata:{L}:job:<id>``        hash    the fields of the job, each as JSON, and beside them
                                       ``_entry`` stream entry, ``_fence`` token of its latest claim,
                                       ``_cancel`` 1 when asked to stop, ``_fingerprint`` of the request
``strata:{L}:events:<id>``     stream  progress events: ``level type message data``; the last 1000, gone
                                       30 days after the last one
=============================  ======  ===============================================================

Once the journal has a job's outcome, its job, events and idempotency keys end 30 days after the job, and of
its metrics events about 100 stay: Redis has little room, and the journal keeps the record.
"""

from __future__ import annotations

import hashlib

GROUP = "workers"
EVENTS_KEPT = 1000
DEAD_KEPT = 1000
METRICS_KEPT_AFTER = 100
EVENTS_SECONDS = 30 * 86400


class Keys:
    """Build the key names of one lineage."""

    def __init__(self, lineage: str) -> None:
        root = f"strata:{{{lineage}}}:"
        self.stream = root + "jobs"
        self.dead = root + "dead"
        self.buried = root + "buried"
        self.index = root + "index"
        self.fence = root + "fence"
        self.writer = root + "writer"
        self.holder = root + "holder"
        self.job_prefix = root + "job:"
        self.events_prefix = root + "events:"
        self.idempotency_prefix = root + "idempotency:"

    def job(self, job_id: str) -> str:
        """Return the key of a job's record."""
        return self.job_prefix + job_id

    def events(self, job_id: str) -> str:
        """Return the key of a job's events."""
        return self.events_prefix + job_id

    def idempotency(self, key: str | None) -> str:
        """Return the key that says whose an Idempotency-Key is; for None one that never exists."""
        return self.idempotency_prefix + (hashlib.sha256(key.encode()).hexdigest() if key is not None else "")
