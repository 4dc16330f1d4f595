"""The real vLLM against plain weights: whatever shares a batch, and whatever happens on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Equal = Callable[[str], None]


def scenario(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scenario", [name])


def both_runners(name: str) -> pytest.MarkDecorator:
    """Run a scenario on the runner that is default on CPUs and on the newer one, default on GPUs."""
    return pytest.mark.parametrize("scenario", [name, f"newer_{name}"])


@both_runners("parity")
def test_64_requests_with_64_vectors_over_two_banks_and_the_base_answer_as_the_oracle(
    result: dict[str, Any], equal: Equal
) -> None:
    equal("first")
    equal("again")
    assert result["first"]["asked"] == 64
    assert result["cached_tokens"] > 500  # the second time prompts came from the prefix cache
    assert result["texts_equal"]
    assert result["reasons_equal"]


@both_runners("parity")
def test_a_bank_is_refilled_while_requests_run_and_others_leave(result: dict[str, Any], equal: Equal) -> None:
    equal("swap")
    assert set(result["inflight"].values()) == {0}
    assert "v3" in result["inflight"]


@both_runners("parity")
def test_what_cannot_be_served_is_refused(result: dict[str, Any]) -> None:
    assert result["faults"] == {
        "not finite": "StateInvalid",
        "other base": "StateInvalid",
        "fewer layers": "TargetMismatch",
        "short coefficients": "InputError",
        "nan coefficients": "InputError",
        "overflow": "error, not finite True",
        "changed file": "not taken",
        "not in time": "UnavailableError, then accepted",
        "unknown version": "NotFoundError",
    }


@both_runners("preemption")
def test_requests_that_are_thrown_out_and_computed_again_answer_the_same(
    result: dict[str, Any], equal: Equal
) -> None:
    assert result["preempted"] > 0
    equal("first")
    assert result["crowd"] == {"accepted": 16, "EngineBusy": 8}  # 64 run, 16 may wait


@scenario("process")
def test_a_killed_engine_comes_back_with_its_versions(result: dict[str, Any], equal: Equal) -> None:
    equal("first")
    assert result["broken_off"] == ["error"]
    assert result["staged_while_down"] == "UnavailableError"
    assert result["while_down"] == "UnavailableError"
    assert result["alive_while_down"] is False
    assert result["came_back"] == ["base", "v1"]  # v2 could not be filled any more: alone it is missing
    equal("after")
    assert set(result["inflight"].values()) == {0}


@scenario("unhooked")
def test_without_a_hook_nothing_is_served(result: dict[str, Any]) -> None:
    assert "increments have no effect on its answers" in result["staged"]
    assert "increments have no effect on its answers" in result["asked"]


@scenario("newer_runner")
def test_the_runner_that_is_default_on_gpus(result: dict[str, Any], equal: Equal) -> None:
    assert result["runner"] == "vllm.v1.worker.cpu.model_runner"
    equal("first")


@scenario("tensor_parallel")
def test_factors_are_sharded_as_the_linears_are(result: dict[str, Any], equal: Equal) -> None:
    equal("first")
    assert result["segments_left"] == []


@scenario("compiled")
def test_gates_are_not_frozen_into_a_compiled_graph(result: dict[str, Any], equal: Equal) -> None:
    assert result["fixed"] is True
    equal("first")
    assert result["too wide"] == "StateInvalid"
    assert result["bad bank"] == "StateInvalid"
    equal("beside a bad bank")  # computed for every token even so: nothing of it may be there


@scenario("native_lora")
def test_an_exported_lora_answers_the_same_in_plain_vllm(equal: Equal) -> None:
    equal("first")


@scenario("embedded")
@pytest.mark.base
def test_the_embedded_base_answers_as_in_the_other_engine(result: dict[str, Any], equal: Equal) -> None:
    equal("first")
    assert result["changed"] >= 6  # of eight questions; a sure answer hardly moves
