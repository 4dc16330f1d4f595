"""Hand each step's gates to the pool, for the older of vLLM's model runners (the default on CPUs).

That runner lets subclasses and others wrap ``_model_forward``; its batch says which request owns which
tokens.
"""

from __future__ import annotations

from typing import Any

from server.engine.vllm_plugin.pool import Pool, RequestGate
from server.engine.vllm_plugin.requests import gate_of_request


class RunnerHook:
    """Set the pool's gates before the runner's forward pass and clear them after it."""

    def __init__(self, runner: Any, pool: Pool) -> None:
        self._runner, self._pool = runner, pool
        self._forward = runner._model_forward
        self._gates: dict[str, RequestGate | None] = {}
        runner._model_forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step."""
        runner = self._runner
        batch = runner.input_batch
        count = batch.num_reqs
        if len(self._gates) > count:
            self._forget_finished()
        self._pool.begin_step(
            [self._gate(req_id) for req_id in batch.req_ids[:count]],
            runner.query_start_loc.np[: count + 1],
            batch.num_computed_tokens_cpu[:count],
        )
        try:
            return self._forward(*args, **kwargs)
        finally:
            self._pool.end_step()

    def _gate(self, req_id: str) -> RequestGate | None:
        if req_id not in self._gates:
            self._gates[req_id] = gate_of_request(self._runner.requests[req_id].sampling_params, self._pool)
        return self._gates[req_id]

    def _forget_finished(self) -> None:
        known = self._runner.requests
        for req_id in [req_id for req_id in self._gates if req_id not in known]:
            del self._gates[req_id]
