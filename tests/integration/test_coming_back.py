"""A known task that comes back: like before it learns on, in another shape in copies of its increments."""

from __future__ import annotations

import pytest
import torch

from adapter_store.jobs import Job, JobStatus
from adapter_store.state import AdapterState
from tests.integration.working import Site

OTHER = "Please name the paint that covers this old canvas."


@pytest.fixture
def shared(site: Site) -> Site:
    """Return a site whose tasks have as many increments as answer."""
    site.settings = site.settings.model_copy(update={"rows_per_task": 2})
    return site


def state_of(site: Site, job: Job) -> AdapterState:
    job = site.finish(job)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.result_version is not None
    return AdapterState.load(site.versions.fetch(job.result_version), base_digest=None)


def test_in_another_shape_copies_learn_and_what_was_there_stays(shared: Site):
    first = state_of(shared, shared.submit("colors", count=60))
    job = shared.submit("colors", OTHER, count=60)
    second = state_of(shared, job)
    assert shared.queue.get(job.id).decision == "retrain"
    assert second.tasks == first.tasks
    assert second.rows == 2 * first.rows
    for target in first.targets:
        assert torch.equal(second.up[target][:, : first.rows], first.up[target])
        assert torch.equal(second.down[target][:, : first.rows], first.down[target])
        assert not torch.equal(second.up[target][:, first.rows :], first.up[target])
    third = state_of(shared, shared.submit("colors", OTHER, count=30))
    assert third.rows == second.rows
    assert torch.equal(third.up["o_proj"][:, : first.rows], first.up["o_proj"])


def test_like_before_its_own_increments_learn(shared: Site):
    first = state_of(shared, shared.submit("colors", count=60))
    second = state_of(shared, shared.submit("colors", count=30))
    assert second.rows == first.rows
    assert not torch.equal(second.up["o_proj"], first.up["o_proj"])


def test_branching_can_be_switched_off(shared: Site):
    shared.settings = shared.settings.model_copy(update={"branch": False})
    first = state_of(shared, shared.submit("colors", count=60))
    second = state_of(shared, shared.submit("colors", OTHER, count=60))
    assert second.rows == first.rows
