"""The computed balance weight, by hand (eqs. 7-10)."""

from __future__ import annotations

import pytest
import torch

from adapter_store.errors import InputError
from trainer_worker.ema import FIXED_ALPHA, BalancedEma


def live_pair() -> torch.Tensor:
    return torch.zeros(2, 3).requires_grad_()


def step(tensor: torch.Tensor, values: list[list[float]], gradient: list[list[float]]) -> None:
    with torch.no_grad():
        tensor.copy_(torch.tensor(values))
    tensor.grad = torch.tensor(gradient, dtype=torch.float32)


def test_normalised_alpha_is_the_hand_computed_one_per_layer():
    live = live_pair()
    ema = BalancedEma({"up": live}, {"up": torch.zeros(2, 3)}, mode="normalised")
    step(live, [[1, 0, 0], [2, 2, 2]], [[1, 1, 0], [4, 0, 0]])
    first = ema.update()["up"]
    assert first.tolist() == pytest.approx([FIXED_ALPHA, FIXED_ALPHA])  # no gradient before the first
    assert torch.allclose(ema.served["up"], torch.tensor([[0.01, 0, 0], [0.02, 0.02, 0.02]]))
    step(live, [[1, 0.1, 0], [2, 2, 3]], [[-1, 1, 0], [-4, 4, 2]])
    alpha = ema.update()["up"]
    # layer 0: (1 + 2) * 0.1 / ((0.99 + 0.1) * 2); layer 1: (1 + 10) * 1 / ((1.98 * 2 + 2.98) * 14)
    assert alpha.tolist() == pytest.approx([3 * 0.1 / (1.09 * 2), 11 * 1 / (6.94 * 14)])
    moved = 0.01 + float(alpha[0]) * 0.99
    assert ema.served["up"][0, 0].item() == pytest.approx(moved)


def test_released_alpha_lacks_the_step_length():
    live = live_pair()
    ema = BalancedEma({"up": live}, {"up": torch.zeros(2, 3)}, mode="released")
    step(live, [[90, 0, 0], [1, 0, 0]], [[1, 0, 0], [1, 0, 0]])
    ema.update()
    step(live, [[91, 0, 0], [1, 0, 0]], [[0, 1, 0], [0, 1, 0]])
    # layer 0: 2 * (1 + 1) / ((91 - 0.9) * 2); layer 1: 4 / (0.99 * 2) > 1 falls back
    assert ema.update()["up"].tolist() == pytest.approx([4 / (90.1 * 2), FIXED_ALPHA])
    assert ema.statistics["up"].fallbacks == 3


def test_zero_denominators_and_fixed_mode_use_the_constant():
    live = live_pair()
    ema = BalancedEma({"up": live}, {"up": torch.zeros(2, 3)}, mode="normalised")
    step(live, [[1, 1, 1], [1, 1, 1]], [[1, 0, 0], [1, 0, 0]])
    ema.update()
    step(live, [[2, 1, 1], [2, 1, 1]], [[1, 0, 0], [1, 0, 0]])  # the gradient did not change
    assert ema.update()["up"].tolist() == pytest.approx([FIXED_ALPHA] * 2)
    fixed = BalancedEma({"up": live}, {"up": torch.zeros(2, 3)}, mode="fixed")
    assert fixed.update()["up"].tolist() == pytest.approx([FIXED_ALPHA] * 2)
    assert fixed.statistics["up"].fallback_ratio == 0.0


def test_statistics_count_every_alpha():
    live = live_pair()
    ema = BalancedEma({"up": live}, {"up": torch.zeros(2, 3)}, mode="normalised")
    for n in range(1, 6):
        step(live, [[n, n % 2, 0], [0, n, n % 3]], [[n, -n, 1], [n * n, 0, -n]])
        ema.update()
    statistics = ema.statistics["up"]
    assert statistics.seen == sum(statistics.counts) == 10
    assert 0 < statistics.mean < 1


def test_an_unknown_mode_is_refused():
    with pytest.raises(InputError, match="normalised, released, fixed"):
        BalancedEma({}, {}, mode="adaptive")  # type: ignore[arg-type]
