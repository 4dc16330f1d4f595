"""Check what is deployed: rules and dashboards name only series that exist, images and compose file agree."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from server.metrics import Metrics
from trainer_worker.metrics import WorkerMetrics
from trainer_worker.opening import metrics_of
from trainer_worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SERIES = re.compile(r"\bstrata_[a-z0-9_]+")


def exposed_series() -> set[str]:
    """Return every series name that the two programs can expose, with the suffixes of their kinds."""
    suffixes = {
        "counter": ["_total"],
        "gauge": [""],
        "histogram": ["_bucket", "_sum", "_count"],
    }
    found = set()
    for registry in (Metrics().registry, WorkerMetrics().registry):
        for family in registry.collect():
            found |= {family.name + suffix for suffix in suffixes.get(family.type, [])}
    return found


def expressions() -> list[tuple[str, str]]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    found = [
        (rule.get("alert") or rule["record"], rule["expr"])
        for group in rules["groups"]
        for rule in group["rules"]
    ]
    for file in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        board = json.loads(file.read_text())
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
    assert named or expression.startswith(("up{", "strata:"))
    assert named <= exposed_series(), title


def test_the_first_refusal_of_a_version_is_an_increase():
    shown = Metrics().render().decode()
    for reason in ("version_corrupt", "probe_failed", "state_error", "base_mismatch", "target_mismatch"):
        assert f'strata_adapter_rejections_total{{reason="{reason}"}} 0.0' in shown


def test_the_forgetting_alert_follows_the_policy():
    assert "strata_policy_max_forgetting_ratio" in dict(expressions())["StrataForgetting"]
    metrics = metrics_of(WorkerSettings(max_forgetting=0.05))
    assert metrics.registry.get_sample_value("strata_policy_max_forgetting_ratio") == 0.05


def test_recorded_series_that_dashboards_use_are_recorded():
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    used = {name for _, text in expressions() for name in re.findall(r"strata:[a-z0-9_:]+", text)}
    assert used <= recorded


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
