"""What a worker process holds for all its jobs: the frozen parts, the stores and the rules."""

from __future__ import annotations

from dataclasses import dataclass

from adapter_store.base.load import Base
from adapter_store.datasets import DatasetStore
from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.lora.store import LoraStore
from adapter_store.queries import QueryEncoder
from adapter_store.state import AdapterState, RoutingSettings, Span
from adapter_store.versions import VersionStore
from trainer_worker.features import Featurizer
from trainer_worker.gate import Policy
from trainer_worker.heldout import HeldOut
from trainer_worker.metrics import WorkerMetrics
from trainer_worker.replicas import Replicas
from trainer_worker.retention import RetentionProbe


@dataclass(frozen=True, slots=True)
class Method:
    """Choices that hold for a whole lineage, taken when its first task is learned (method settings)."""

    rank: int = 8
    span: Span = "after_image"
    routing: RoutingSettings = RoutingSettings()  # noqa: RUF009  (frozen)
    theta: float | None = None
    contextual: bool = True
    branch: bool = True
    calibrate_tau: bool = True

    def ignored_for(self, state: AdapterState) -> dict[str, str]:
        """Return by name which settings differ from what a lineage was begun with, which stays."""
        pairs = {
            "STRATA_RANK": (self.rank, state.rank),
            "STRATA_SPAN": (self.span, state.span),
            "STRATA_ROUTING": (self.routing.mode, state.routing.mode),
            "STRATA_TOP_M": (self.routing.top_m, state.routing.top_m),
        }
        return {name: f"{stays}, not {set_}" for name, (set_, stays) in pairs.items() if set_ != stays}

    def with_fixed_tau(self, state: AdapterState) -> AdapterState:
        """Return the state with the tau that is fixed, if one is."""
        return state if self.calibrate_tau else state.with_routing(tau=self.routing.tau)


@dataclass(frozen=True, slots=True)
class Workshop:
    """Everything that ``run_job`` works with."""

    base: Base
    replicas: Replicas
    featurizer: Featurizer
    queries: QueryEncoder
    versions: VersionStore
    datasets: DatasetStore
    loras: LoraStore
    held_out: HeldOut
    retention: RetentionProbe
    metrics: WorkerMetrics
    policy: Policy
    defaults: Hyperparameters
    method: Method
    prefix_cache_bytes: int
    end_ids: frozenset[int]

    def untaught(self) -> AdapterState:
        """Return the state of the plain base."""
        method = self.method
        return AdapterState.empty(
            self.base.digest,
            self.replicas.increments.shapes,
            self.queries.width(method.routing),
            method.rank,
            method.span,
            method.routing,
        )
