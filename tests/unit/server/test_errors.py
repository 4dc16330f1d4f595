"""Every exception has one status, one body and the right headers."""

from __future__ import annotations

import errno

import pytest

from adapter_store.datasets import Fault, Report
from adapter_store.errors import (
    AliasConflict,
    BaseMismatch,
    DatasetError,
    DatasetsBusy,
    EngineBusy,
    ImageError,
    InputError,
    LeaseLost,
    NotFoundError,
    ProbeFailed,
    QueueUnavailable,
    StrataError,
)
from server.errors import describe


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InputError("x", param="n"), 400, "invalid_request"),
        (ImageError("x"), 400, "invalid_image"),
        (NotFoundError("x"), 404, "not_found"),
        (AliasConflict("x"), 409, "alias_conflict"),
        (EngineBusy("x"), 429, "engine_busy"),
        (DatasetsBusy("x"), 429, "datasets_busy"),
        (QueueUnavailable("x"), 503, "queue_unavailable"),
        (BaseMismatch("x"), 409, "base_mismatch"),
        (ProbeFailed("x"), 409, "probe_failed"),
        (OSError(errno.ENOSPC, "No space left on device", "/root/x"), 503, "disk_full"),
        (LeaseLost("x at /root/y"), 500, "internal_error"),
        (StrataError("x at /root/y"), 500, "internal_error"),
        (RuntimeError("x at /root/y"), 500, "internal_error"),
    ],
)
def test_status_code_and_headers(error: Exception, status: int, code: str):
    found, body, headers = describe(error)
    assert (found, body["error"]["code"]) == (status, code)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (headers.get("x-should-retry") == "false") == (status == 409)
    assert ("retry-after" in headers) == (status in (429, 503))
    assert "/root" not in str(body)


def test_faults_of_a_data_set_travel_whole():
    report = Report(faults=(Fault(3, "answer", "the answer is missing"),), truncated_faults=2)
    _, body, _ = describe(DatasetError(report.summary(), report=report))
    assert body["error"]["report"]["faults"][0]["line"] == 3
    assert body["error"]["report"]["truncated_faults"] == 2
