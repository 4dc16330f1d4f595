"""What the gateway may ask of every worker: fill a bank while requests run, and say what lies in it.

vLLM mixes this class into its worker (``worker_extension_cls``); ``collective_rpc`` calls the methods between
two steps, so each returns at once. Filling happens in a thread of its own, while requests run on other banks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from server.engine.vllm_plugin.linears import Target
from server.engine.vllm_plugin.pool import Pool
from server.engine.vllm_plugin.runner_hook import RunnerHook
from server.engine.vllm_plugin.shared_memory import take_names_away
from server.logs import log

_FILLING = threading.Lock()
"""One bank at a time: a slow copy must not run into the next one of the same bank."""


class PoolWorker:
    """Extend a worker by its part of the pool; names begin with ``pool_`` to keep out of vLLM's way."""

    model_runner: Any
    rank: int

    def pool_attach(self) -> dict[str, Any]:
        """Hook into the model runner; return ``shapes``, ``capacity``, ``fixed`` and ``runner``."""
        take_names_away()  # vLLM calls all workers, so all have joined
        pool = self._pool_of_model()
        state = getattr(self.model_runner, "model_state", None)
        if state is None and not isinstance(self.model_runner._model_forward, RunnerHook):
            RunnerHook(self.model_runner, pool)
        targets = self._pool_targets()
        return {
            "shapes": {name: target.shape for name, target in targets.items()},
            "capacity": pool.capacity,
            "fixed": pool.fixed,
            "runner": type(self.model_runner).__module__,
        }

    def pool_fill(self, bank: int, path: str, digest: str, rank: int) -> str:
        """Begin to fill ``bank`` from the safetensors file of that sha256; ``rank`` is its total rank.

        Returns:
            The file that will say how it went, ``fault`` and ``refused`` null or in words: another call
            would wait for a step of the engine each time.
        """
        outcome = f"{path}.{self.rank}.json"
        pool = self._pool_of_model()
        pool.fills[bank] += 1
        asked = (outcome, pool.fills[bank], bank, path, digest, rank)
        threading.Thread(target=self._pool_run, args=asked, name="pool-fill", daemon=True).start()
        return outcome

    def pool_empty(self, bank: int) -> None:
        """Zero a bank that no request uses."""
        with torch.inference_mode():  # as filled, and as read by steps
            _empty(self._pool_targets(), bank)

    def _pool_of_model(self) -> Pool:
        model: Any = self.model_runner.model
        return model.pool

    def _pool_targets(self) -> dict[str, Target]:
        model: Any = self.model_runner.model
        return model.pooled

    def _pool_run(self, outcome: str, number: int, bank: int, path: str, digest: str, rank: int) -> None:
        told: dict[str, str | None] = {"fault": None, "refused": None}
        try:
            with _FILLING, torch.inference_mode():
                if self._pool_of_model().fills[bank] != number:  # given up on: another version came
                    raise OSError("the bank was given to another version meanwhile")
                fill_bank(self._pool_of_model(), self._pool_targets(), bank, path, digest, rank)
        except Unfit as error:
            told["refused"] = str(error)
        except Exception as error:  # noqa: BLE001  whatever it is, it belongs to the one who asked
            told["fault"] = f"{type(error).__name__}: {error}"
        unfinished = Path(f"{outcome}.part")
        try:
            unfinished.write_text(json.dumps(told), encoding="utf-8")
            unfinished.rename(outcome)
        except OSError as error:  # nobody will be told; who waits gives up after a while
            log("a worker cannot say how filling a bank went", logging.ERROR, error=error)


class Unfit(Exception):
    """Say why increments can never be served by this engine."""


def fill_bank(pool: Pool, targets: dict[str, Target], bank: int, path: str, digest: str, rank: int) -> None:
    """Copy this rank's part of a version into an idle bank and read it back; if that fails the bank is empty.

    Args:
        pool: whose bank it is.
        targets: the increments by target.
        bank: which one; no request may use it. In a graph it is computed for all tokens even so.
        path: safetensors with ``down.<target>`` ``[L, N, r, d_in]`` and ``up.<target>`` ``[L, N, d_out, r]``.
        digest: sha256 of the file in hexadecimal.
        rank: total rank N * r.

    Raises:
        Unfit: the increments have other shapes than the model's linears, or a value is not finite.
        OSError: the file cannot be read or is not the one meant, or memory does not read back what was
            written.
    """
    data = Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise OSError("the file was changed on its way to the worker")
    tensors = load(data)
    try:
        _make_room(pool, targets, rank)
        for name, target in targets.items():
            down, up = tensors[f"down.{name}"], tensors[f"up.{name}"]
            _check(name, target, down, up, rank, pool.capacity)
            own_down = down[..., target.cut.inputs].flatten(1, 2)
            own_up = up[:, :, target.cut.outputs].transpose(2, 3).flatten(1, 2)
            for kept, given in ((target.down[:, bank], own_down), (target.up[:, bank], own_up)):
                _copy(name, kept, given.to(pool.dtype), rank)
    except BaseException:
        _empty(targets, bank)
        raise


def _empty(targets: dict[str, Target], bank: int) -> None:
    for target in targets.values():
        target.down[:, bank].zero_()
        target.up[:, bank].zero_()


def _make_room(pool: Pool, targets: dict[str, Target], rank: int) -> None:
    if rank > pool.capacity and not pool.fixed:  # a graph knows the memory it was captured with
        capacity = max(rank, pool.capacity + pool.capacity // 2)
        for target in targets.values():
            target.grow(capacity)
        pool.capacity = capacity


def _copy(name: str, kept: torch.Tensor, given: torch.Tensor, rank: int) -> None:
    """Copy ``[L, rank, d]`` into ``[L, R, d]`` and zero the rest, unless a value is not finite."""
    if not bool(torch.isfinite(given).all()):
        raise Unfit(f"{name} holds a value that is not finite in {given.dtype}")
    kept[:, :rank].copy_(given)
    kept[:, rank:].zero_()
    if not torch.equal(kept[:, :rank].cpu(), given):
        raise OSError(f"{name} reads back differently: this device's memory cannot be trusted")


def _check(name: str, target: Target, down: torch.Tensor, up: torch.Tensor, rank: int, capacity: int) -> None:
    layers, d_in, d_out = target.shape
    rows, r = down.shape[1], down.shape[2]
    if tuple(down.shape) != (layers, rows, r, d_in) or tuple(up.shape) != (layers, rows, d_out, r):
        raise Unfit(f"{name} is {list(down.shape)} and {list(up.shape)}, the model adapts {target.shape}")
    if rows * r != rank or rank > capacity:
        raise Unfit(f"{name} has total rank {rows * r}; {rank} was announced, {capacity} fit")
