"""Hold what the demo measured and check it against what the product promises."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from server.demo.asking import Tally

MIN_ACCURACY = 0.90
MAX_FORGETTING = 0.02
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Stage:
    """Record one stage: what was taught and how both tasks are answered after it.

    Attributes:
        name: ``base`` or the task that was taught.
        version: Version that answers after it.
        accuracy: Share of right answers per task over HTTP.
        served_seconds: From sending the data to the first answer by the new version.
        swap_seconds: The gateway's own measure of filling the bank, probing and flipping.
        phases: Seconds of the worker's phases.
        leak: Routing leak per task as the worker measured it.
    """

    name: str
    version: str
    accuracy: dict[str, float]
    served_seconds: float | None = None
    swap_seconds: float | None = None
    phases: dict[str, float] = field(default_factory=dict)
    leak: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Promise:
    """State one promise and whether it was kept."""

    text: str
    measured: str
    kept: bool


@dataclass(slots=True)
class Outcome:
    """Gather everything the demo saw."""

    tasks: tuple[str, ...]
    stages: list[Stage] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    during: Tally = field(default_factory=Tally)
    versions: list[str] = field(default_factory=list)
    picture: str | None = None
    home: str | None = None
    url: str | None = None
    total_seconds: float = 0.0
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)

    def forgetting(self) -> float:
        """Return the mean drop of earlier tasks from their best stage to the last one; 0 with one task.

        For each task but the last: its best accuracy from the stage that taught it up to the last but one,
        minus its accuracy after the last stage.
        """
        taught = [stage for stage in self.stages if stage.name in self.tasks]
        drops = []
        for index, stage in enumerate(taught[:-1]):
            best = max(s.accuracy[stage.name] for s in taught[index:-1])
            drops.append(best - taught[-1].accuracy[stage.name])
        return sum(drops) / len(drops) if drops else 0.0

    def promises(self) -> list[Promise]:
        """Return every promise with its measurement."""
        found: list[Promise] = []
        taught: list[str] = []
        for stage in self.stages[1:]:
            taught.append(stage.name)
            for task in taught:
                value = stage.accuracy[task]
                text = f"{task} at least {MIN_ACCURACY:.0%} after {stage.name}"
                found.append(Promise(text, f"{value:.1%}", value >= MIN_ACCURACY - _ROUNDING))
        complete = len(taught) == len(self.tasks)
        found.append(Promise("every task was taught", f"{len(taught)} of {len(self.tasks)}", complete))
        forgotten = self.forgetting()
        text = f"forgetting at most {100 * MAX_FORGETTING:.0f} points"
        found.append(Promise(text, f"{100 * forgotten:.1f} points", forgotten <= MAX_FORGETTING + _ROUNDING))
        tally = self.tally
        found.append(
            Promise("no request failed", f"{tally.failed} of {tally.sent}", tally.failed == 0 < tally.sent)
        )
        wanted = len(self.tasks)
        kept = len(set(self.versions)) == wanted
        found.append(Promise(f"{wanted} versions", ", ".join(self.versions) or "none", kept))
        return found

    def kept(self) -> bool:
        """Return whether every promise was kept."""
        return all(promise.kept for promise in self.promises())

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON-ready values."""
        return {
            "kept": self.kept(),
            "promises": [asdict(promise) for promise in self.promises()],
            "tasks": list(self.tasks),
            "stages": [asdict(stage) for stage in self.stages],
            "forgetting": self.forgetting(),
            "versions": self.versions,
            "requests": _counts(self.tally),
            "requests_while_learning": _counts(self.during),
            "picture": self.picture,
            "home": self.home,
            "url": self.url,
            "total_seconds": self.total_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def _counts(tally: Tally) -> dict[str, Any]:
    quantiles = {f"p{round(100 * q)}_seconds": tally.latency_seconds(q) for q in (0.5, 0.99)}
    known = {name: value if value == value else None for name, value in quantiles.items()}
    return {
        "sent": tally.sent,
        "failed": tally.failed,
        "reasons": tally.reasons,
        **known,
        "by_version": tally.versions,
    }
