"""The board Adaptation: what is being learned, what became of it, and how it came to be served."""

from __future__ import annotations

from deploy.grafana.boards.panels import (
    GREEN,
    ORANGE,
    RATE,
    RED,
    Board,
    Panel,
    Query,
    buckets,
    lines,
    measured,
    number,
)

_NOW: list[Panel] = [
    number(
        "Jobs that wait",
        "Accepted batches that no worker has begun; the one that runs does not count.",
        "It only matters together with the age beside it.",
        "max(strata_queue_depth)",
        unit="none",
        empty="no queue",
    ),
    number(
        "Oldest waits",
        "Since when the job at the head of the queue waits.",
        "After an hour an alert fires: look at the phases below for what takes long.",
        "max(strata_queue_oldest_seconds)",
        unit="s",
        steps=((None, GREEN), (600, ORANGE), (3600, RED)),
        empty="no queue",
    ),
    number(
        "Worker's last sign of life",
        "Age of the worker's heartbeat; it comes every second, also in the middle of a job.",
        "After five minutes, if jobs wait, an alert fires: read the worker's log and restart it.",
        "strata:worker_silent:seconds",
        unit="s",
        steps=((None, GREEN), (60, ORANGE), (300, RED)),
        empty="no worker",
    ),
    number(
        "Worker",
        "Whether a job runs now.",
        "Idle although jobs wait: see its sign of life.",
        "max(strata_worker_busy)",
        unit="none",
        mappings={"0": "idle", "1": "learning"},
        empty="no worker",
    ),
    number(
        "Redis",
        "Whether the gateway reaches Redis. Without it questions are answered, new data gets 503.",
        "Bring Redis back; accepted jobs are also on disk and are handed in again.",
        "min(strata_queue_up)",
        unit="none",
        steps=((None, RED), (1, GREEN)),
        mappings={"0": "away", "1": "there"},
    ),
    number(
        "Published to served",
        "From the last version's publication to its first answer.",
        "Seconds are normal. Minutes: the bank was in use for long, or the store is slow (the gateway's log"
        " times each part).",
        "max(strata_adapter_publish_to_served_seconds)",
        unit="s",
        steps=((None, GREEN), (30, ORANGE), (120, RED)),
    ),
]

_JOBS: list[Panel] = [
    lines(
        "Queue",
        "Waiting jobs, and whether the worker is busy.",
        "It grows for hours: batches come faster than they are learned; send fewer, larger ones.",
        Query("max(strata_queue_depth)", "waiting"),
        Query("max(strata_worker_busy)", "worker busy"),
        unit="none",
        width=6,
        steps=True,
    ),
    lines(
        "What became of submissions and jobs",
        "In a quarter of an hour. invalid: refused at the door with every fault. failed: given up by the"
        " worker."
        " repeated: the same Idempotency-Key again. taken up again: after a worker died.",
        "failed: `strata jobs` has the reason. invalid: the client got the full report.",
        Query("round(sum by (outcome) (increase(strata_submissions_total[15m])))", "submitted: {{outcome}}"),
        Query("round(sum by (status) (increase(strata_jobs_total[15m])))", "ended: {{status}}"),
        Query("round(sum(increase(strata_job_redeliveries_total[15m])))", "taken up again"),
        unit="none",
        width=6,
    ),
    lines(
        "What people say",
        "Thumbs and corrections of an hour, by the alias of the version that had answered.",
        "Many down: teach what was wrong; a correction that says the right answer becomes a job by itself.",
        Query("round(sum by (rating, alias) (increase(strata_feedback_total[1h])))", "{{rating}}: {{alias}}"),
        unit="none",
        width=6,
    ),
    lines(
        "What the gate decided",
        "In an hour. promoted: served. held_back: the gate refused. conflict and superseded: somebody moved"
        " stable meanwhile.",
        "held_back: `strata jobs` names each reason; the board Forgetting shows the numbers.",
        Query("round(sum by (decision) (increase(strata_promotions_total[1h])))", "{{decision}}"),
        unit="none",
        width=6,
        stacked=True,
    ),
]

_LEARNING: list[Panel] = [
    lines(
        "Training loss",
        "Loss of the latest step; between jobs it keeps its last value.",
        "It must fall within a job. It does not: learning rate, or answers that do not belong to the"
        " pictures.",
        Query("max(strata_training_loss)", "loss"),
        unit="none",
    ),
    lines(
        "Training speed",
        "Samples a second of the present job; between jobs it keeps its last value.",
        "Halved: something else takes the cores, or the questions became longer.",
        Query("max(strata_training_samples_per_second)", "samples a second"),
        unit="short",
    ),
    lines(
        "Seconds per phase",
        "Mean length of each phase of the jobs that ended in the last hour, on top of each other.",
        "evaluate grows with the number of known tasks, encode with the number of pictures, train with both.",
        Query(
            "sum by (phase) (increase(strata_job_seconds_sum[1h]))"
            " / sum by (phase) (increase(strata_job_seconds_count[1h]) > 0)",
            "{{phase}}",
        ),
        unit="s",
        stacked=True,
    ),
    buckets(
        "Weight of what is new (EMA alpha)",
        "How the computed weights of the moving average are spread: near 1 follows the new data, near 0"
        " keeps.",
        "Nearly all in the lowest row and nothing is learned: STRATA_EMA_MODE=normalised, or off.",
        f"sum by (le) (increase(strata_ema_alpha_bucket[{RATE}]))",
        unit="none",
        width=12,
    ),
    lines(
        "Weights that could not be computed",
        "Share of weights of the last job for which the constant 0.01 stood in, by kind of tensor.",
        "Near 100 % a kind of tensor was averaged at that slow constant; STRATA_EMA_MODE=off serves what was"
        " trained as it is.",
        Query("max by (kind) (strata_ema_fallback_ratio)", "{{kind}}"),
        unit="percentunit",
        width=12,
        whole=True,
        steps=True,
    ),
]

_CANDIDATE: list[Panel] = [
    lines(
        "Candidate: accuracy",
        "What the worker measured last on held-out pictures of every known task, served or not.",
        "Lower than the board Forgetting shows for the served version: that is what the gate looks at.",
        Query('strata_candidate_task_accuracy_ratio{task=~"$task"}', "{{task}}"),
        unit="percentunit",
        width=6,
        whole=True,
        steps=True,
    ),
    measured(
        "Candidate: forgetting",
        "Drop of each task since its best stage. Above the dashed line the version is held back.",
        "Held back often: batches contradict what was taught; look at the data before you raise"
        " STRATA_MAX_FORGETTING.",
        Query('strata_candidate_task_forgetting_ratio{task=~"$task"}', "{{task}}"),
        "max(strata_policy_max_forgetting_ratio)",
        width=6,
    ),
    measured(
        "Candidate: routing leak",
        "Share of the coefficients that a task's held-out questions put on other tasks' increments. Dashed:"
        " the gate's bound.",
        "A leak between two tasks: they ask the same about alike pictures; teach them as one task.",
        Query('strata_candidate_routing_leak_ratio{task=~"$task"}', "{{task}}"),
        "max(strata_policy_max_leak_ratio)",
        width=6,
    ),
    measured(
        "Candidate: zero-shot retention",
        "Score on questions outside all tasks over the base's. Dashed: the least that the gate lets pass.",
        "Below the line: a task answers strangers' questions; its bar (STRATA_TAU) may be too low.",
        Query("max(strata_candidate_zero_shot_retention_ratio)", "retention"),
        "max(strata_policy_min_retention_ratio)",
        width=6,
    ),
]

_SWAPS: list[Panel] = [
    lines(
        "Swap",
        "From seeing a moved alias to serving its version, mean of an hour. Requests go on meanwhile.",
        "Long: the new version is large, or waits until a bank is free (board Serving, requests by bank).",
        Query(
            "sum(increase(strata_adapter_swap_seconds_sum[1h]))"
            " / sum(increase(strata_adapter_swap_seconds_count[1h]) > 0)",
            "mean",
        ),
        unit="s",
        width=8,
    ),
    lines(
        "Versions loaded",
        "Into a bank, in a quarter of an hour; refused ones never answer anybody.",
        "Many loads without new versions: more versions are asked for than there are banks (STRATA_BANKS).",
        Query("round(sum by (outcome) (increase(strata_adapter_loads_total[15m])))", "{{outcome}}"),
        unit="none",
    ),
    lines(
        "Versions refused, by reason",
        "probe_failed: it does not reproduce its own answer. version_corrupt: files are damaged."
        " base_mismatch:"
        " made for another base.",
        "stable is put back by itself after the first two; the gateway's log has the details.",
        Query("round(sum by (reason) (increase(strata_adapter_rejections_total[15m])))", "{{reason}}"),
        unit="none",
    ),
]

BOARD = Board(
    uid="strata-adaptation",
    title="Strata: Adaptation",
    description="What is being learned, what became of it, and how it came to be served.",
    rows={
        "Now": _NOW,
        "Jobs": _JOBS,
        "Learning": _LEARNING,
        "The latest candidate": _CANDIDATE,
        "Swaps": _SWAPS,
    },
    variables={"task": "label_values(strata_candidate_task_accuracy_ratio, task)"},
)
