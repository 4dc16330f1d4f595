"""Hand each step's gates to the pool, for the newer of vLLM's model runners (the default on GPUs)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.states import RequestState

from server.engine.vllm_plugin.pool import Pool, RequestGate
from server.engine.vllm_plugin.requests import gate_of_request


class PooledModelState(DefaultModelState):
    """Know the gate of every request; ``prepare_inputs`` runs before each step, graph replays included."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gates: dict[str, RequestGate | None] = {}

    @property
    def _pool(self) -> Pool | None:
        model: Any = self.model
        return model.pool

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """Remember a new or resumed request's gate."""
        super().add_request(req_index, new_req_data)
        if self._pool is not None:
            gate = gate_of_request(new_req_data.sampling_params, self._pool)
            self._gates[new_req_data.req_id] = gate

    def remove_request(self, req_id: str) -> None:
        """Forget a request."""
        super().remove_request(req_id)
        self._gates.pop(req_id, None)

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Tensor | None]:
        """Set the pool's gates for the step."""
        inputs = super().prepare_inputs(input_batch, req_states)
        if self._pool is not None:
            count = input_batch.num_reqs
            self._pool.begin_step(
                [self._gates.get(req_id) for req_id in input_batch.req_ids[:count]],
                input_batch.query_start_loc_np[: count + 1],
                input_batch.num_computed_tokens_np[:count],
            )
        return inputs

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        """Run warm-up and capture as the base."""
        if self._pool is not None:
            self._pool.end_step()
        return super().prepare_dummy_inputs(num_reqs, num_tokens)
