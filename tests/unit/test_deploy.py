"""Check what is deployed: rules and boards name only series that exist, images and compose file agree."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapter_store.settings import PREFIX, known_names
from deploy.grafana.boards.__main__ import texts
from server.engine.protocol import EngineStats
from server.metrics import Metrics
from trainer_worker.metrics import WorkerMetrics
from trainer_worker.opening import metrics_of
from trainer_worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SERIES = re.compile(r"\bstrata_[a-z0-9_]+")
OTHERS = ("up{", "strata:", "count(ALERTS{", "vector(")
"""How expressions begin that ask for no series of the two programs."""


def exposed_series() -> set[str]:
    """Return every series name that the two programs can expose, with the suffixes of their kinds."""
    suffixes = {
        "counter": ["_total"],
        "gauge": [""],
        "histogram": ["_bucket", "_sum", "_count"],
    }
    found = set()
    gateway = Metrics()
    counted: dict[str, Any] = dict.fromkeys(EngineStats.__slots__, 0)
    gateway.watch_engine(lambda: EngineStats(**counted))
    for registry in (gateway.registry, WorkerMetrics().registry):
        for family in registry.collect():
            found |= {family.name + suffix for suffix in suffixes.get(family.type, [])}
    return found


def boards() -> dict[str, dict[str, Any]]:
    files = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


def panels() -> list[Any]:
    return [
        pytest.param(panel, id=f"{name}: {panel['title']}")
        for name, board in boards().items()
        for panel in board["panels"]
        if panel["type"] != "row"
    ]


def expressions() -> list[tuple[str, str]]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    found = [
        (rule.get("alert") or rule["record"], rule["expr"])
        for group in rules["groups"]
        for rule in group["rules"]
    ]
    for board in boards().values():
        found += [
            (panel["title"], target["expr"])
            for panel in board["panels"]
            for target in panel.get("targets", [])
        ]
        found += [(item["name"], item["expr"]) for item in board["annotations"]["list"]]
    return found


@pytest.mark.parametrize(("title", "expression"), expressions())
def test_every_series_exists(title: str, expression: str):
    named = set(SERIES.findall(expression))
    assert named or expression.removeprefix("scalar(").startswith(OTHERS)
    assert named <= exposed_series(), title


def test_the_first_refusal_of_a_version_is_an_increase():
    shown = Metrics().render().decode()
    for reason in ("version_corrupt", "probe_failed", "state_error", "base_mismatch", "target_mismatch"):
        assert f'strata_adapter_rejections_total{{reason="{reason}"}} 0.0' in shown


@pytest.mark.parametrize(
    ("alert", "setting"),
    [
        ("StrataForgetting", "max_forgetting"),
        ("StrataLeak", "max_leak"),
        ("StrataRetention", "min_retention"),
    ],
)
def test_what_the_gate_has_a_bound_for_is_alerted_by_that_bound(alert: str, setting: str):
    series = f"strata_policy_{setting}_ratio"
    assert series in dict(expressions())[alert]
    metrics = metrics_of(WorkerSettings.model_validate({setting: 0.25}))
    assert metrics.registry.get_sample_value(series) == 0.25


def test_recorded_series_that_dashboards_use_are_recorded():
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    used = {name for _, text in expressions() for name in re.findall(r"strata:[a-z0-9_:]+", text)}
    assert used <= recorded


def test_the_boards_are_what_their_descriptions_say():
    folder = DEPLOY / "grafana" / "dashboards"
    assert {path.name: path.read_text() for path in folder.iterdir()} == texts(), (
        "run python -m deploy.grafana.boards"
    )


def test_three_boards_lead_to_each_other_and_one_of_them_is_home():
    found = boards()
    assert set(found) == {"serving", "adaptation", "forgetting"}
    assert len({board["uid"] for board in found.values()}) == 3
    for board in found.values():
        (link,) = board["links"]
        assert (link["type"], link["tags"]) == ("dashboards", board["tags"])
        assert {variable["name"] for variable in board["templating"]["list"]} >= {"task"}
        titles = [panel["title"] for panel in board["panels"] if panel["type"] != "row"]
        assert len(titles) == len(set(titles))
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    home = Path(compose["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/strata.yml").read_text())
    assert str(home.parent) == provider["providers"][0]["options"]["path"]
    assert home.stem in found


@pytest.mark.parametrize("panel", panels())
def test_a_panel_says_how_to_read_it_and_what_to_do(panel: dict[str, Any]):
    read, _, act = panel["description"].partition("\n\n**What to do:** ")
    assert min(len(read), len(act)) > 20
    assert panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]
    named = re.findall(r"\bSTRATA_[A-Z_]+[A-Z]\b", panel["description"])
    assert {name.removeprefix(PREFIX).lower() for name in named} <= set(known_names())


def test_panels_lie_beside_each_other_and_not_on_each_other():
    for board in boards().values():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            grid = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(grid["x"], grid["x"] + grid["w"])
                for y in range(grid["y"], grid["y"] + grid["h"])
            }
            assert not cells & taken, panel["title"]
            assert max(x for x, _ in cells) < 24
            taken |= cells


def test_every_alert_is_tested_when_it_fires_and_when_it_does_not():
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    tests = yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    for fires in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) is fires} == alerts


def test_every_series_is_explained():
    text = (ROOT / "docs" / "monitoring.md").read_text()
    explained = set(SERIES.findall(text)) - {"strata_engine_"}
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed_series()}
    assert {name for name in names if not name.startswith("strata_engine_")} - explained == set()
    assert explained - exposed_series() - names == set()


def test_the_compose_file_runs_the_five_services_from_files_that_exist():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert set(compose["services"]) == {"gateway", "worker", "redis", "prometheus", "grafana"}
    stages = set(re.findall(r"^FROM .* AS (\w+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    declared = set(compose["volumes"])
    for service in compose["services"].values():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
            assert service["build"]["target"] in stages
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in declared or (ROOT / source).exists(), volume


def test_versions_are_pinned_in_one_place():
    text = (DEPLOY / "Dockerfile").read_text()
    installs = [line for line in text.splitlines() if "pip install " in line]
    assert installs
    for line in installs:
        assert "-c requirements.lock" in line
        assert "==" not in line, "the lock says which"


def test_a_full_redis_refuses_jobs_and_drops_none():
    command = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert re.fullmatch(r"[1-9]\d*mb", options["--maxmemory"])


def test_prometheus_scrapes_the_ports_the_images_expose():
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    targets = {target for job in scraped for group in job["static_configs"] for target in group["targets"]}
    exposed = set(re.findall(r"^EXPOSE (\d+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    assert targets == {"gateway:8000", "worker:9101"}
    assert exposed == {"8000", "9101"}


def test_images_run_without_root_and_with_a_health_check():
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER 10001$", text, re.MULTILINE)
    assert text.count("HEALTHCHECK") == 2


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool comes with Debian's package prometheus"
)
def test_promtool_accepts_the_rules():
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run(
            ["promtool", *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
