"""The row of the board Serving that compares stable, canary and shadow."""

from __future__ import annotations

from deploy.grafana.boards.panels import RATE, Panel, Query, lines

PANELS: list[Panel] = [
    lines(
        "Who answers the plain name",
        "Questions to the plain model name by the version's part. shadow: computed there too, never"
        " answered.",
        "canary stays at 0 although it has a weight: see whether it can answer, in the panel on the right.",
        Query(f"sum by (slot) (rate(strata_slot_requests_total[{RATE}]))", "{{slot}}"),
        unit="reqps",
    ),
    lines(
        "Failures by part",
        "Share of each part's questions that failed, in a quarter of an hour.",
        "The canary above stable: it is rolled back by itself from STRATA_CANARY_MAX_ERROR_RATIO on.",
        Query(
            "sum by (slot) (increase(strata_slot_errors_total[15m]))"
            " / sum by (slot) (increase(strata_slot_requests_total[15m]) > 0)",
            "{{slot}}",
        ),
        unit="percentunit",
        from_zero=True,
    ),
    lines(
        "First and further tokens by part, p95",
        "Time to the first token of an answer, and mean of each further one: a canary is compared by these.",
        "The canary above stable by more than STRATA_CANARY_MAX_SLOWDOWN: it is rolled back by itself.",
        Query(
            f"histogram_quantile(0.95, sum by (le, slot)"
            f" (rate(strata_slot_first_token_seconds_bucket[{RATE}])))",
            "{{slot}} first",
        ),
        Query(
            f"histogram_quantile(0.95, sum by (le, slot) (rate(strata_slot_token_seconds_bucket[{RATE}])))",
            "{{slot}} further",
        ),
        unit="s",
    ),
    lines(
        "Shadow agrees",
        "Share of compared answers that were the same, letter by letter; only greedy answers are compared.",
        "Low agreement is no fault by itself: ask what differs with strata@shadow before you promote it.",
        Query(
            'sum(increase(strata_shadow_compared_total{outcome="same"}[15m]))'
            ' / (sum(increase(strata_shadow_compared_total{outcome=~"same|different"}[15m])) > 0)',
            "same",
        ),
        unit="percentunit",
        whole=True,
    ),
    lines(
        "Thumbs by part",
        "What people said of each part's version since it takes part.",
        "Many down for the canary: it is rolled back by itself from STRATA_CANARY_MAX_THUMBS_DOWN on.",
        Query("sum by (slot, rating) (strata_slot_thumbs)", "{{slot}} {{rating}}"),
        unit="none",
        steps=True,
    ),
    lines(
        "Can answer, and how canaries ended",
        "1 while a part's version is staged and probed. Ends of an hour: by people (promoted, rolled_back),"
        " or"
        " by the rule (errors, slowdown, thumbs_down).",
        "A part at 0 for long: other versions take its bank; raise STRATA_BANKS.",
        Query("max by (slot) (strata_slot_ready)", "{{slot}} can answer"),
        Query(
            "round(sum by (decision) (increase(strata_canary_decisions_total[1h])))", "ended: {{decision}}"
        ),
        unit="none",
        steps=True,
    ),
]
