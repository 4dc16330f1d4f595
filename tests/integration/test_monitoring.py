"""A real Prometheus watches the real gateway and worker while they answer, learn, swap and refuse."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adapter_store.base.load import Base
from adapter_store.jobs import Job
from adapter_store.redis_server import RedisServer
from adapter_store.versions import Probe
from deploy.grafana.draw import Source, draw_board
from tests.contract.conftest import RunningGateway, chat_body, wait_for
from tests.contract.pictures import examples
from tests.contract.publishing import QUESTION, Publisher
from tests.integration.prometheus import Prometheus, Samples, finite
from tests.integration.working import FAST, Site
from trainer_worker.opening import open_workshop
from trainer_worker.worker import Worker

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus comes with Debian's package prometheus"
)

BOARDS = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards"
LEARN_SECONDS = 240.0
PATIENCE_SECONDS = 600.0
"""Far longer than anything takes on a busy machine; a failure says what Prometheus could not scrape."""
SHADES = "Say what you see in this picture, please."
VARIABLES = {"$__rate_interval": "5m", "$task": ".*", "$alias": ".*"}
SERIES = """
strata_task_accuracy_ratio strata_task_forgetting_ratio strata_average_accuracy_ratio
strata_backward_transfer_ratio strata_routing_leak_ratio strata_zero_shot_retention_ratio
strata_routed_requests_total strata_unrouted_requests_total strata_adapter_alias_info
strata_adapter_swap_seconds_count strata_adapter_loads_total strata_adapter_inflight_requests
strata_promotions_total strata_jobs_total strata_job_seconds_count strata_queue_depth
strata_queue_oldest_seconds strata_training_loss strata_ema_alpha_count strata_ema_fallback_ratio
strata_http_request_seconds_count strata_time_to_first_token_seconds_count strata_tokens_total
strata_accuracy_matrix_ratio strata_adapter_alias_version strata_adapter_alias_moved_timestamp_seconds
strata_adapter_served_version strata_adapter_rejections_total strata_submissions_total
strata_worker_heartbeat_timestamp_seconds strata_generations_total strata_token_gap_seconds_count
strata_slot_requests_total strata_slot_request_seconds_count strata_slot_ready strata_shadow_compared_total
strata_canary_decisions_total strata_dead_letters_total
strata_feedback_total strata_feedback_waiting strata_feedback_oldest_seconds strata_feedback_refused_total
""".split()
"""The series that the interface promises, and those that the boards need beside them."""
OF_A_BUSY_MACHINE = {"StrataGatewayDown", "StrataWorkerDown", "StrataWorkerSilent", "StrataSlowFirstToken"}
"""They fire rightly where nothing answers within the second that a scrape has here."""
MISSED_SECONDS = 60
"""The shortest time for which one of them has to hold."""
NOT_MEASURED = "max(strata_candidate_zero_shot_retention_ratio)"
"""The tiny base answers no general question right, so there is nothing to retain: no number, but a series."""


class Watched:
    """The three programs of a service and the Prometheus that watches them."""

    def __init__(self, folder: Path, base: Path, redis_url: str) -> None:
        self.site = Site(folder / "home", base, redis_url)
        self.site.settings = self.site.settings.model_copy(update={"max_forgetting": 1.0, "max_chance": 1.0})
        self.gateway = RunningGateway(self.site.home, base, redis_url=redis_url).wait_ready()
        shop = open_workshop(self.site.settings)
        port = shop.metrics.serve("127.0.0.1", 0)
        targets = {
            "gateway:8000": self.gateway.url.removeprefix("http://"),
            "worker:9101": f"127.0.0.1:{port}",
        }
        self.prometheus = Prometheus(folder / "prometheus", targets)
        worker = Worker(shop, self.site.queue, "w", self.site.stop)
        self._working = threading.Thread(target=worker.run)
        self._answered = threading.Event()
        self._asking = threading.Thread(target=self._keep_asking)

    def live(self, publisher: Publisher) -> None:
        """Do what a service does: answer, learn three jobs, fail one, refuse a version, refuse requests."""
        wait_for(self.prometheus.is_up)
        self._asking.start()
        self._send_data()
        jobs = [self.site.submit("colors"), self.site.submit("shades", SHADES)]
        jobs += [self.site.submit("colors", count=18), self.site.submit("bad", speed="fast")]
        self._see("strata_queue_oldest_seconds > 2")
        self._working.start()
        for job in jobs:
            self._wait_for(job)
        other = publisher.publish(publisher.state(1)).version
        self._move_there_and_back(other)
        self._try_out(other)
        bad = publisher.publish(publisher.state(7), probe=_wrong_probe(publisher))
        self._point_stable_at(bad.version)
        wait_for(lambda: bad.version in self.gateway.gateway.ready().live.refused, PATIENCE_SECONDS)
        self._see('ALERTS{alertname="StrataProbeFailed"}')
        self._wait_until_served("v3")
        self._answered.set()
        self._asking.join()
        self._see("strata:time_to_first_token_seconds:p99_5m >= 0")

    def stop(self) -> None:
        self._answered.set()
        self.site.stop.set()
        for thread in (self._asking, self._working):
            if thread.ident is not None:
                thread.join(60)
        self.prometheus.stop()
        self.gateway.stop()
        self.site.client.close()

    def _keep_asking(self) -> None:
        questions = ("Which color?", SHADES, "Tell me about something else entirely: 1 2 3 4 5 6 7 8 9.")
        number = 0
        while not self._answered.is_set():
            body = chat_body(questions[number % 3], max_tokens=200, temperature=0)
            self.gateway.http.post("/v1/chat/completions", json=body)
            number += 1

    def _see(self, expression: str) -> None:
        """Wait until Prometheus has a value; asking without a pause would starve what is asked about."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not finite(self.prometheus.now(expression)):
            assert time.monotonic() < deadline, f"never seen: {expression}; {self.prometheus.trouble()}"
            time.sleep(0.5)

    def _wait_for(self, job: Job) -> None:
        wait_for(lambda: self.site.queue.get(job.id).status.terminal, LEARN_SECONDS)

    def _point_stable_at(self, version: str) -> None:
        moved = self.gateway.http.put("/v1/adapters/strata/aliases/stable", json={"version": version})
        assert moved.status_code == 200, moved.text

    def _wait_until_served(self, version: str) -> None:
        named = f'strata_adapter_alias_info{{version="{version}",alias="stable"}}'
        served = f"strata_adapter_served_version == {version.removeprefix('v')}"
        self._see(f"{named} and on (instance) {served}")

    def _move_there_and_back(self, version: str) -> None:
        """Serve another version and roll back, as an operator does."""
        self._point_stable_at(version)
        self._wait_until_served(version)
        back = self.gateway.http.post("/v1/adapters/strata/rollback", json={})
        assert back.status_code == 200, back.text
        self._wait_until_served("v3")

    def _try_out(self, version: str) -> None:
        """Let a canary answer everything and end it, then let a shadow answer along."""
        aliases, http = "/v1/adapters/strata/aliases", self.gateway.http
        body = {"version": version, "weight": 1.0}
        assert http.put(f"{aliases}/canary", json=body).status_code == 200
        self._see('strata_slot_requests_total{slot="canary"} > 0')
        assert http.post("/v1/adapters/strata/canary:rollback").status_code == 200
        assert http.put(f"{aliases}/shadow", json=body).status_code == 200
        compared = 'strata_shadow_compared_total{outcome=~"same|different"} > 0'
        self._see(compared)
        assert http.delete(f"{aliases}/shadow").status_code in (200, 204)

    def _send_data(self) -> None:
        """Send a batch that is accepted (and canceled) and one that is not; ask for a model there is not."""
        http = self.gateway.http
        sent = http.post("/v1/tasks/later/batches", json={"examples": examples(6), "hyperparameters": FAST})
        assert sent.status_code == 202, sent.text
        http.post(f"/v1/fine_tuning/jobs/{sent.json()['id']}/cancel")
        assert http.post("/v1/tasks/later/batches", json={"examples": [{}]}).status_code == 400
        thumb = {"rating": "down", "question": "Which color?", "answer": "?", "version": "base"}
        assert http.post("/v1/feedback", json=thumb).status_code == 200
        assert http.post("/v1/chat/completions", json=chat_body() | {"model": "none"}).status_code == 404


def _wrong_probe(publisher: Publisher) -> Probe:
    ids, logprobs = publisher.greedy(publisher.state(7))
    shifted = tuple(value - 1 for value in logprobs)
    return Probe(question=QUESTION, image="probe.png", answer_token_ids=tuple(ids), logprobs=shifted)


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, loaded_tiny_base: Base
) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    with RedisServer.start(folder / "home") as server:
        service = Watched(folder, tiny_base, server.url)
        try:
            service.live(Publisher(loaded_tiny_base, service.gateway.gateway.store))
            yield service
        finally:
            service.stop()


def boards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(BOARDS.glob("*.json"))}


def targets() -> list[Any]:
    return [
        pytest.param(target, id=f"{name}: {panel['title']} {target['refId']}")
        for name, board in boards().items()
        for panel in board["panels"]
        for target in panel.get("targets", [])
    ]


def filled_in(expression: str) -> str:
    """Return what Grafana asks for when every variable is set to All."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def moved(samples: Samples) -> bool:
    """Return whether a series changed its value, or came when others were there already."""
    starts = [pairs[0][0] for pairs in samples.values()]
    changed = any(len({str(value) for _, value in pairs}) > 1 for pairs in samples.values())
    return changed or max(starts) - min(starts) > 1


@pytest.mark.parametrize("series", SERIES)
def test_every_promised_series_is_there_and_moves(watched: Watched, series: str):
    samples = watched.prometheus.since_the_beginning(series)
    assert finite(samples), series
    later = min(pairs[0][0] for pairs in samples.values()) > watched.prometheus.began + 5
    assert later or moved(samples), samples


@pytest.mark.parametrize("target", targets())
def test_every_query_of_every_panel_returns_numbers(watched: Watched, target: dict[str, Any]):
    is_table = target["format"] == "table"
    ask = watched.prometheus.now if is_table else watched.prometheus.since_the_beginning
    samples = ask(filled_in(target["expr"]))
    assert finite(samples) if target["expr"] != NOT_MEASURED else samples, target["expr"]


def test_every_panel_is_drawn_from_what_prometheus_says(watched: Watched, tmp_path: Path):
    source = Source(watched.prometheus.url, 10)
    for name, board in boards().items():
        empty = draw_board(board, source, tmp_path / f"{name}.png")
        assert set(empty) <= {"Zero-shot retention, room"}, "what the tiny base has not"
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 1000
            assert len(picture.getcolors(1 << 24) or []) > 50


def test_every_annotation_returns_moments(watched: Watched):
    marks = [mark for board in boards().values() for mark in board["annotations"]["list"]]
    assert marks
    for mark in marks:
        samples = watched.prometheus.since_the_beginning(filled_in(mark["expr"]))
        assert finite(samples), mark["name"]
        if mark["useValueForTime"]:
            began = watched.prometheus.began
            assert all(began - 60 < moment / 1000 < began + 3600 for moment in finite(samples))


def test_every_variable_has_values_to_choose_from(watched: Watched):
    wanted = {"task": {"colors", "shades"}, "alias": {"stable", "previous"}}
    for board in boards().values():
        for variable in board["templating"]["list"]:
            series, label = variable["definition"].removeprefix("label_values(").rstrip(")").split(", ")
            values = watched.prometheus.get(f"/api/v1/label/{label}/values", **{"match[]": series})
            assert wanted[variable["name"]] <= set(values)


def test_the_heat_map_is_the_matrix_that_http_gives(watched: Watched):
    told = watched.gateway.http.get("/v1/evaluations/matrix").json()
    assert told["trained"] == ["colors", "shades", "colors"]
    panel = next(p for p in boards()["forgetting"]["panels"] if p["title"] == "Accuracy matrix R")
    shown = {
        (labels["after"], labels["task"]): pairs[0][1]
        for labels, pairs in (
            (dict(key), pairs)
            for key, pairs in watched.prometheus.now(filled_in(panel["targets"][0]["expr"])).items()
        )
    }
    rows = [("0000 base", told["base"])]
    rows += [(f"{n:04d} {told['trained'][n - 1]}", row) for n, row in enumerate(told["rows"], start=1)]
    wanted = {
        (name, task): score
        for name, row in rows
        for task, score in zip(told["tasks"], row, strict=True)
        if score is not None
    }
    assert shown == pytest.approx(wanted)
    assert ("0001 colors", "shades") not in shown


def test_every_rule_is_loaded_and_evaluates(watched: Watched):
    loaded = [rule for group in watched.prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]]
    text = (BOARDS.parents[1] / "prometheus" / "rules.yml").read_text()
    assert len(loaded) == text.count("- alert:") + text.count("- record:")
    assert {(rule["name"], rule["health"], rule.get("lastError", "")) for rule in loaded} == {
        (rule["name"], "ok", "") for rule in loaded
    }


def test_alerts_fire_for_what_went_wrong_and_for_nothing_else(watched: Watched):
    fired = watched.prometheus.since_the_beginning('ALERTS{alertstate="firing"}')
    names = {dict(labels)["alertname"] for labels in fired}
    missed = watched.prometheus.since_the_beginning("up == 0")
    was_busy = any(len(pairs) >= MISSED_SECONDS for pairs in missed.values())
    assert names - (OF_A_BUSY_MACHINE if was_busy else set()) == {"StrataProbeFailed", "StrataJobsFail"}, (
        missed
    )
