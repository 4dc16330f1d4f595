"""A real Prometheus that scrapes the test's own programs with the shipped configuration and rules."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from server.launch.ports import free_port

SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
Samples = dict[tuple[tuple[str, str], ...], list[tuple[float, float]]]
"""(label, value) pairs of a series -> its (time, value) pairs."""


class Prometheus:
    """Run Prometheus with its targets replaced, and ask it."""

    def __init__(self, folder: Path, targets: Mapping[str, str]) -> None:
        folder.mkdir()
        shutil.copy(SHIPPED / "rules.yml", folder)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(_rewritten(targets)))
        port = free_port()
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self.url = f"http://127.0.0.1:{port}"
        self._http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        self.began = time.time()

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the ``data`` of an answer; a query that does not parse fails here, with the reason."""
        answer = self._http.get(path, params=parameters)
        body = answer.json()
        assert body["status"] == "success", body
        return body["data"]

    def is_up(self) -> bool:
        """Return whether every target was scraped."""
        assert self._process.poll() is None, Path(self._log.name).read_text()
        try:
            found = self.get("/api/v1/targets", state="active")["activeTargets"]
        except (httpx.TransportError, json.JSONDecodeError):  # it says in words that it is not ready yet
            return False
        return bool(found) and all(target["health"] == "up" for target in found)

    def trouble(self) -> dict[str, str]:
        """Return why the last scrape of each target failed; empty where it did not."""
        found = self.get("/api/v1/targets", state="active")["activeTargets"]
        return {target["scrapeUrl"]: target["lastError"] for target in found}

    def now(self, expression: str) -> Samples:
        """Return the value of every series now."""
        found = self.get("/api/v1/query", query=expression)
        if found["resultType"] == "scalar":
            return {(): [_pair(found["result"])]}
        return {_labels(series): [_pair(series["value"])] for series in found["result"]}

    def since_the_beginning(self, expression: str) -> Samples:
        """Return every second's value of every series."""
        span = {"start": self.began, "end": time.time(), "step": 1}
        found = self.get("/api/v1/query_range", query=expression, **span)["result"]
        return {_labels(series): [_pair(pair) for pair in series["values"]] for series in found}

    def stop(self) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


def finite(samples: Samples) -> list[float]:
    """Return the values that are numbers."""
    return [value for pairs in samples.values() for _, value in pairs if math.isfinite(value)]


def _rewritten(targets: Mapping[str, str]) -> dict[str, Any]:
    """Return the shipped configuration, once a second, with other addresses."""
    settings = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    settings["global"] = dict.fromkeys(settings["global"], "1s")
    for job in settings["scrape_configs"]:
        for group in job["static_configs"]:
            group["targets"] = [targets[target] for target in group["targets"]]
    return settings


def _labels(series: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(series["metric"].items()))


def _pair(pair: list[Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])
