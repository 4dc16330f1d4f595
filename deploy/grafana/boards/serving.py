"""The board Serving: are questions answered, how fast, and by what."""

from __future__ import annotations

from deploy.grafana.boards import canary
from deploy.grafana.boards.panels import GREEN, ORANGE, RATE, RED, Board, Panel, Query, lines, number

_ASKED = 'route=~"/v1/chat/completions|/v1/vqa"'
_QUIET = 'route!~"/metrics|/health|/ready"'


def _quantile(share: float, series: str, by: str = "le", labels: str = "") -> str:
    return f"histogram_quantile({share}, sum by ({by}) (rate({series}_bucket{labels}[{RATE}])))"


_NOW: list[Panel] = [
    number(
        "Questions a second",
        "Chat completions and /v1/vqa that ended, refused ones included.",
        "0 although people ask: look whether the gateway is ready (GET /ready says what is missing).",
        f"sum(rate(strata_http_requests_total{{{_ASKED}}}[{RATE}]))",
        unit="reqps",
    ),
    number(
        "Requests that fail",
        "Share of answers with a 5xx status in five minutes; 4xx are faults of those who ask and do not"
        " count.",
        "From 1 % on an alert fires. Find the request in the gateway's log by its x-request-id; `strata"
        " rollback`"
        " if it began with a swap.",
        "strata:http_errors:ratio_5m",
        unit="percentunit",
        steps=((None, GREEN), (0.001, ORANGE), (0.01, RED)),
    ),
    number(
        "Answers that break off",
        "Share of answers that began and ended with an error or because the server stopped; a stream keeps"
        " its"
        " status 200 then, so they are not among the failed requests.",
        "Look at the gateway's log for the engine's error.",
        "strata:answers_broken:ratio_5m",
        unit="percentunit",
        steps=((None, GREEN), (0.001, ORANGE), (0.01, RED)),
    ),
    number(
        "First token, p99",
        "99 of 100 answers began within this time, over the last five minutes; empty while nobody asks.",
        "Above 10 s for ten minutes an alert fires. If requests wait, see the engine's row; else the"
        " prompts grew.",
        "strata:time_to_first_token_seconds:p99_5m",
        unit="s",
        steps=((None, GREEN), (3, ORANGE), (10, RED)),
        empty="nobody asks",
    ),
    number(
        "Stable answers with",
        "The version that answers the plain model name now.",
        "If it is not what stable names (board Forgetting, aliases), the gateway's log says why it does not"
        " follow.",
        "max(strata_adapter_served_version)",
        unit="prefix:v",
        mappings={"0": "base"},
    ),
    number(
        "Alerts that fire",
        "All alerts of this Prometheus; each carries a sentence on what to do.",
        "Open the page Alerts of Prometheus and read what_to_do.",
        'count(ALERTS{alertstate="firing"}) or vector(0)',
        unit="none",
        steps=((None, GREEN), (1, RED)),
    ),
]

_REQUESTS: list[Panel] = [
    lines(
        "Requests by route",
        "What is asked of the gateway, without what machines ask all the time.",
        "Nothing by itself; compare it with latency and errors at the same moment.",
        Query(f"sum by (route) (rate(strata_http_requests_total{{{_QUIET}}}[{RATE}]))", "{{route}}"),
        unit="reqps",
        stacked=True,
    ),
    lines(
        "Requests by status",
        "4xx: what was sent is wrong. 429: the line is full. 5xx: something here is wrong.",
        "Many 429: more gateways or a larger batch (STRATA_MAX_BATCH). 5xx: the gateway's log.",
        Query(f"sum by (status) (rate(strata_http_requests_total{{{_QUIET}}}[{RATE}]))", "{{status}}"),
        unit="reqps",
        stacked=True,
    ),
    lines(
        "How answers end",
        "stop: the model was done. length: max_tokens cut it. error and abort broke off. refused: never"
        " began.",
        "Many length: clients ask for too few tokens. error: the gateway's log.",
        Query(f"sum by (outcome) (rate(strata_generations_total[{RATE}]))", "{{outcome}}"),
        unit="reqps",
        stacked=True,
    ),
]

_SPEED: list[Panel] = [
    lines(
        "Time to the first token",
        "From the request to its first token: the picture is encoded, the prompt read. The dashed line is"
        " the alert's.",
        "p50 rises with the load: requests wait. Only p99 rises: some prompts are long or have many"
        " pictures.",
        Query(_quantile(0.5, "strata_time_to_first_token_seconds"), "p50"),
        Query(_quantile(0.9, "strata_time_to_first_token_seconds"), "p90"),
        Query(_quantile(0.99, "strata_time_to_first_token_seconds"), "p99"),
        Query("vector(10)", "alert", bound=True),
        unit="s",
    ),
    lines(
        "Between two tokens",
        "How smoothly text streams. A swap of versions must not show here: compare with the green marks.",
        "A step up when a job starts: training takes the cores; lower STRATA_THREADS of the worker.",
        Query(_quantile(0.5, "strata_token_gap_seconds"), "p50"),
        Query(_quantile(0.99, "strata_token_gap_seconds"), "p99"),
        unit="s",
    ),
    lines(
        "Whole answers by route, p99",
        "Time to the end of an answer. Routes that follow a job live as long as they are followed.",
        "Compare with the number of tokens: long answers take long.",
        Query("strata:http_request_seconds:p99_5m{" + _QUIET + "}", "{{route}}"),
        unit="s",
    ),
    lines(
        "Tokens a second",
        "What the engine reads (prompt, pictures included) and writes (completion).",
        "Completion tokens stay flat while requests wait: that is the machine's speed.",
        Query(f"sum by (kind) (rate(strata_tokens_total[{RATE}]))", "{{kind}}"),
        unit="short",
    ),
    lines(
        "Finding the increments",
        "Time to find which increments answer, once the pictures are encoded: well below one token's time.",
        "If it grows with the number of tasks, see STRATA_DENSE_RANK.",
        Query(_quantile(0.5, "strata_routing_seconds"), "p50"),
        Query(_quantile(0.99, "strata_routing_seconds"), "p99"),
        unit="s",
    ),
    lines(
        "Which task's increments answer",
        "Questions by the task whose increments weigh most; 'no task' is answered by the base alone.",
        "A task that nobody asks may be fine. Many 'no task' that should be one: teach it those questions,"
        " too.",
        Query(f'sum by (task) (rate(strata_routed_requests_total{{task=~"$task"}}[{RATE}]))', "{{task}}"),
        Query(f"sum(rate(strata_unrouted_requests_total[{RATE}]))", "no task"),
        unit="reqps",
        stacked=True,
    ),
]

_ENGINE: list[Panel] = [
    lines(
        "Running and waiting",
        "Requests in the batch, and those that wait for a place in it.",
        "Waiting for long: raise STRATA_MAX_BATCH if memory allows, or add a gateway.",
        Query("sum(strata_engine_running)", "running"),
        Query("sum(strata_engine_waiting)", "waiting"),
        unit="none",
    ),
    lines(
        "Requests by bank",
        "Versions answer side by side; after a swap the old bank runs empty while the new one fills.",
        "A bank that never runs empty keeps the next version out: a request there has no end (max_tokens).",
        Query("sum by (slot) (strata_adapter_inflight_requests)", "{{slot}}"),
        unit="none",
    ),
    lines(
        "Keys and values in use",
        "Share of the engine's places for tokens; at 100 % new requests wait.",
        "Always high: give it more (STRATA_KV_CACHE_MEMORY_BYTES) or shorten the context"
        " (STRATA_MAX_MODEL_LEN).",
        Query("sum(strata_engine_kv_used_tokens) / sum(strata_engine_kv_capacity_tokens)", "in use"),
        unit="percentunit",
        whole=True,
    ),
]

BOARD = Board(
    uid="strata-serving",
    title="Strata: Serving",
    description="Are questions answered, how fast, and by what. vLLM's own boards work beside this one.",
    rows={
        "Now": _NOW,
        "Requests": _REQUESTS,
        "Speed and routing": _SPEED,
        "Canary and shadow": canary.PANELS,
        "Engine": _ENGINE,
    },
    variables={"task": "label_values(strata_task_accuracy_ratio, task)"},
)
