"""The board Forgetting: what the served version knows, what it lost, and when that changed."""

from __future__ import annotations

from deploy.grafana.boards.panels import (
    GREEN,
    ORANGE,
    RED,
    Board,
    Panel,
    Query,
    lines,
    matrix,
    measured,
    number,
    versions,
)

_ASKED = (
    "scalar(sum(increase(strata_routed_requests_total[15m]))"
    " + sum(increase(strata_unrouted_requests_total[15m])))"
)

_NOW: list[Panel] = [
    number(
        "Average accuracy",
        "Mean held-out accuracy of the served version over the tasks it was taught.",
        "It falls when a hard task comes; only together with forgetting that is a loss.",
        "max(strata_average_accuracy_ratio)",
        unit="percentunit",
        empty="nothing learned",
    ),
    number(
        "Worst forgetting",
        "The largest drop of any task since its best stage.",
        "See the panel of forgetting for the task and the matrix for the stage that cost it.",
        "max(strata_task_forgetting_ratio)",
        unit="percentunit",
        empty="nothing to forget",
    ),
    number(
        "Room before the bound",
        "The gate's bound minus the worst forgetting; the bound is the worker's policy, at least the five"
        " points"
        " that one question of 20 may bring. Below 0 an alert fires.",
        "Below 0 somebody promoted against the gate: `strata matrix` to compare, `strata rollback` to go"
        " back.",
        "scalar(strata:forgetting_bound:ratio) - max(strata_task_forgetting_ratio)",
        unit="percentunit",
        steps=((None, RED), (0, ORANGE), (0.01, GREEN)),
        empty="nothing to forget",
    ),
    number(
        "Backward transfer",
        "What later stages gave to (above 0) or took from (below 0) earlier tasks, in the mean.",
        "Clearly below 0: later tasks overwrite earlier ones; the matrix shows which.",
        "max(strata_backward_transfer_ratio)",
        unit="percentunit",
        steps=((None, RED), (-0.05, ORANGE), (-0.01, GREEN)),
        empty="nothing learned",
    ),
    number(
        "Worst leak, room",
        "The bound of the routing leak minus the worst task's leak. Below 0 questions of a task reach other"
        " tasks' increments more than the gate lets pass.",
        "`strata explain` with a picture of that task shows whose increments answer.",
        "scalar(strata:leak_bound:ratio) - max(strata_routing_leak_ratio)",
        unit="percentunit",
        steps=((None, RED), (0, ORANGE), (0.01, GREEN)),
        empty="nothing learned",
    ),
    number(
        "Zero-shot retention, room",
        "Score on questions outside all tasks over the base's score, minus the least that the gate lets"
        " pass.",
        "Below 0 the base's own skills fade: a task's increments answer strangers' questions. Roll back.",
        "max(strata_zero_shot_retention_ratio) - scalar(strata:retention_bound:ratio)",
        unit="percentunit",
        steps=((None, RED), (0, ORANGE), (0.01, GREEN)),
        empty="nothing learned",
    ),
]

_MATRIX: list[Panel] = [
    matrix(
        "Accuracy matrix R",
        "A row is a stage (one job: its number and the task it trained), a column a task, a cell the"
        " accuracy on"
        " that task's held-out pictures after that stage. The first row is the base. Read a column downwards:"
        " it should turn green where its task was trained and stay green.",
        "A column that fades from a row on: that row's job cost the task. Serve a version before it and"
        " look at"
        " what that batch taught.",
        'label_join(max by (stage, trained, task) (strata_accuracy_matrix_ratio{task=~"$task"}), "after", "'
        ' ",'
        ' "stage", "trained")',
        row="after",
        column="task",
        heading="After stage",
    ),
    versions(
        "Aliases over time",
        "Which version every alias named, and in the first lane which one answered as stable.",
        "The first lane differs from stable for long: the gateway cannot load that version; its log says"
        " why.",
        Query("max(strata_adapter_served_version)", "answers"),
        Query('max by (alias) (strata_adapter_alias_version{alias=~"$alias"})', "{{alias}}"),
    ),
]

_OVER_TIME: list[Panel] = [
    lines(
        "Accuracy by task",
        "Held-out accuracy of what is served. Green marks: stable moved. Orange marks: the worker decided.",
        "A drop at a green mark is forgetting; without one a task was measured on new held-out pictures.",
        Query('strata_task_accuracy_ratio{task=~"$task"}', "{{task}}"),
        Query("max(strata_average_accuracy_ratio)", "average"),
        unit="percentunit",
        whole=True,
        steps=True,
    ),
    measured(
        "Forgetting by task",
        "Best earlier accuracy minus the present one; below 0 the task got better. Above the dashed line an"
        " alert"
        " fires.",
        "`strata rollback` serves the version before; then send the batch that cost it again, smaller or"
        " cleaner.",
        Query('strata_task_forgetting_ratio{task=~"$task"}', "{{task}}"),
        "strata:forgetting_bound:ratio",
        name="the alert's bound",
    ),
    measured(
        "Routing leak by task",
        "Share of the coefficients that a task's held-out questions put on other tasks' increments.",
        "Two tasks that leak into each other ask the same about alike pictures: teach them under one name.",
        Query('strata_routing_leak_ratio{task=~"$task"}', "{{task}}"),
        "strata:leak_bound:ratio",
    ),
    measured(
        "Zero-shot retention",
        "Score on questions outside all tasks over the base's; 100 % is as good as the base.",
        "Below the dashed line: a task answers strangers' questions; its bar (STRATA_TAU) may be too low.",
        Query("max(strata_zero_shot_retention_ratio)", "retention"),
        "strata:retention_bound:ratio",
    ),
    lines(
        "Who answers live questions",
        "Share of the questions of a quarter of an hour by the task whose increments weigh most; 'no task' is"
        " answered by the base alone.",
        "A task that was asked yesterday and vanished: its questions changed or another task took them.",
        Query(
            f'sum by (task) (increase(strata_routed_requests_total{{task=~"$task"}}[15m])) / {_ASKED}',
            "{{task}}",
        ),
        Query(f"sum(increase(strata_unrouted_requests_total[15m])) / {_ASKED}", "no task"),
        unit="percentunit",
        whole=True,
    ),
    lines(
        "What the gate decided",
        "Since the worker started. held_back versions exist and can be asked by number, but stable passes"
        " them by.",
        "`strata jobs` names the reasons; `strata promote` serves one all the same.",
        Query("sum by (decision) (strata_promotions_total)", "{{decision}}"),
        unit="none",
        steps=True,
    ),
]

BOARD = Board(
    uid="strata-forgetting",
    title="Strata: Forgetting",
    description="What the served version knows, what it lost, and when that changed.",
    rows={"Now": _NOW, "What every stage kept": _MATRIX, "Over time": _OVER_TIME},
    variables={
        "task": "label_values(strata_task_accuracy_ratio, task)",
        "alias": "label_values(strata_adapter_alias_info, alias)",
    },
)
