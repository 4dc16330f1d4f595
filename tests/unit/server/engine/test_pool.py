"""The pool inside vLLM, without vLLM: each token gets its own request's increments and no other's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from server.engine.vllm_plugin.pool import Factors, Pool, RequestGate

BANKS, CAPACITY, D_IN, D_OUT = 3, 16, 6, 10


def make_pool(*, fixed: bool) -> Pool:
    return Pool(BANKS, CAPACITY, 64, torch.float64, torch.device("cpu"), fixed=fixed)


def make_factors(columns: slice | None = None) -> Factors:
    generator = torch.Generator().manual_seed(1)
    width = D_OUT if columns is None else columns.stop - columns.start
    down = torch.randn(BANKS, CAPACITY, D_IN, generator=generator, dtype=torch.float64)
    up = torch.randn(BANKS, CAPACITY, width, generator=generator, dtype=torch.float64)
    up[:, 8:] = 0  # banks in use are filled up with zeros
    return Factors(down, up, columns=columns)


def gate(bank: int, seed: int, start: int = 0) -> RequestGate:
    values = torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return RequestGate(bank, values, start)


def by_token(
    requests: list[RequestGate | None],
    counts: list[int],
    positions: list[int],
    x: torch.Tensor,
    factors: Factors,
) -> torch.Tensor:
    """Compute what every token's request adds, token by token."""
    added = torch.zeros(len(x), D_OUT, dtype=x.dtype)
    columns = factors.columns or slice(0, D_OUT)
    token = 0
    for request, count, first in zip(requests, counts, positions, strict=True):
        for offset in range(count):
            if request is not None and first + offset >= request.start:
                width = len(request.gate)
                down, up = factors.down[request.bank, :width], factors.up[request.bank, :width]
                added[token, columns] = (down @ x[token] * request.gate) @ up
            token += 1
    return added


STEPS = {
    "decoding, one bank": ([gate(0, 1), gate(0, 2), gate(0, 3)], [1, 1, 1], [5, 9, 7]),
    "decoding, two banks and the base": (
        [gate(0, 1), None, gate(2, 3), gate(0, 4)],
        [1, 1, 1, 1],
        [5, 9, 7, 8],
    ),
    "decoding, nobody": ([None, None], [1, 1], [3, 4]),
    "a prompt whose picture is left alone": ([gate(1, 1, start=4), gate(1, 2)], [6, 1], [0, 9]),
    "a later piece of a prompt": ([gate(1, 1, start=4)], [5], [2]),
    "a piece before the first adapted token": ([gate(1, 1, start=40), gate(0, 2)], [5, 2], [2, 0]),
    "as many tokens as requests, but not one each": ([gate(0, 1), gate(0, 2, start=9)], [2, 1], [0, 0]),
}


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("columns", [None, slice(2, 7)])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_adds_what_each_token_is_due(step: str, columns: slice | None, fixed: bool) -> None:
    requests, counts, positions = STEPS[step]
    pool, factors = make_pool(fixed=fixed), make_factors(columns)
    tokens = sum(counts)
    padding = 3 if fixed else 0
    x = torch.randn(tokens + padding, D_IN, dtype=torch.float64)
    y = torch.randn(tokens + padding, D_OUT, dtype=torch.float64)
    # what an earlier, longer step left behind must not be seen
    pool.begin_step([gate(0, 9), gate(2, 8)], np.array([0, 30, 40]), np.array([0, 0]))
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    pool.begin_step(requests, bounds, np.array(positions))
    expected = y.clone()
    expected[:tokens] += by_token(requests, counts, positions, x[:tokens], factors)
    assert torch.allclose(pool.add(y.clone(), x, factors), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("columns", [None, slice(2, 7)])
def test_gathered_increments_act_beside_whole_banks(columns: slice | None) -> None:
    pool, factors = make_pool(fixed=False), make_factors(columns)
    factors.up[:, 8:] = 1.0  # four increments of rank 4, all of them real
    pool.linears.append(factors)
    rows = (3, 1)
    few = torch.rand(8, dtype=torch.float64)
    whole = torch.zeros(2, CAPACITY, dtype=torch.float64)
    whole[:, 12:], whole[:, 4:8] = few[:4], few[4:]
    touching = [RequestGate(1, few, start, pool.gather(1, rows, 4)) for start in (0, 0, 3)]
    assert touching[0].gathered is touching[1].gathered
    requests = [touching[0], gate(1, 5), touching[1], None, touching[2]]
    counts, positions = [1, 2, 1, 1, 5], [7, 0, 4, 2, 0]
    x = torch.randn(sum(counts), D_IN, dtype=torch.float64)
    pool.begin_step(requests, np.concatenate([[0], np.cumsum(counts)]), np.array(positions))
    found = pool.add(torch.zeros(len(x), D_OUT, dtype=torch.float64), x, factors)
    plain = [
        request if request is None or request.gathered is None else RequestGate(1, whole[0], request.start)
        for request in requests
    ]
    expected = by_token(plain, counts, positions, x, factors)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_a_refilled_bank_is_gathered_anew() -> None:
    pool, factors = make_pool(fixed=False), make_factors()
    pool.linears.append(factors)
    old = pool.gather(0, (1,), 4)
    pool.fills[0] += 1
    assert pool.gather(0, (1,), 4) is not old


@pytest.mark.parametrize("fixed", [False, True])
def test_between_steps_nothing_is_adapted(fixed: bool) -> None:
    pool, factors = make_pool(fixed=fixed), make_factors()
    pool.begin_step([gate(0, 1)], np.array([0, 4]), np.array([0]))
    pool.end_step()
    y = torch.randn(4, D_OUT, dtype=torch.float64)
    assert torch.equal(pool.add(y.clone(), torch.randn(4, D_IN, dtype=torch.float64), factors), y)


def test_a_graph_reads_the_same_memory_in_every_step() -> None:
    pool = make_pool(fixed=True)
    address = pool.gates.data_ptr()
    for tokens in (3, 60, 1):
        pool.begin_step([gate(1, tokens)], np.array([0, tokens]), np.array([0]))
        assert pool.gates.data_ptr() == address
        assert bool(pool.gates[1, :tokens, :8].all())
        assert not bool(pool.gates[:, tokens:].any())


def test_a_bank_may_have_room_for_a_part_of_an_increment() -> None:
    pool = Pool(BANKS, CAPACITY + 3, 64, torch.float64, torch.device("cpu"))
    factors = make_factors()
    down, up = (torch.nn.functional.pad(side, (0, 0, 0, 3)) for side in (factors.down, factors.up))
    padded = Factors(down, up)
    pool.linears.append(padded)
    gathered = pool.gather(1, (2, 0), 4)
    down, up = gathered.factors[0]
    assert torch.equal(down, torch.cat([factors.down[1, 8:12], factors.down[1, :4]]))
    assert torch.equal(up, torch.cat([factors.up[1, 8:12], factors.up[1, :4]]))


def test_in_a_graph_what_overflows_in_one_bank_is_no_other_requests_nan() -> None:
    pool, factors = make_pool(fixed=True), make_factors()
    factors.down[0] = 1e308
    pool.begin_step([gate(0, 1), gate(1, 2), None], np.arange(4), np.array([5, 5, 5]))
    x = torch.ones(3, D_IN, dtype=torch.float64)
    y = pool.add(torch.zeros(3, D_OUT, dtype=torch.float64), x, factors)
    assert not y[0].isfinite().all()
    assert y[1:].isfinite().all()
