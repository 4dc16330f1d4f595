"""New increments look where the answers are, and each layer moves at its own rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapter_store.jobs.hyperparameters import Hyperparameters
from tests.unit.trainer_worker.conftest import Parts
from trainer_worker.learn import Lesson, learn
from trainer_worker.optimizer import LayerwiseAdamW
from trainer_worker.progress import Interrupted
from trainer_worker.survey import glimpse, survey


def test_the_optimizer_is_adamw_with_a_rate_per_layer():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, 4, generator=generator)
    ours = start.clone().requires_grad_()
    layers = [start[n].clone().requires_grad_() for n in range(2)]
    theirs = torch.optim.AdamW(
        [{"params": [layers[0]], "lr": 0.1}, {"params": [layers[1]], "lr": 0.01}],
        betas=(0.9, 0.99),
        weight_decay=0.1,
        eps=1e-12,
    )
    optimizer = LayerwiseAdamW({"up": ours}, {"up": torch.tensor([0.1, 0.01])}, weight_decay=0.1, eps=1e-12)
    for _ in range(5):
        gradient = torch.randn(2, 3, 4, generator=generator)
        ours.grad = gradient.clone()
        for n, layer in enumerate(layers):
            layer.grad = gradient[n].clone()
        optimizer.step(1.0)
        theirs.step()
    assert torch.allclose(ours, torch.stack([layer.detach() for layer in layers]), atol=1e-5)


class Toy(nn.Module):
    """A layer whose linear sees eight values, of which only the sixth tells the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.o_proj = nn.Linear(8, 4, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.o_proj(hidden_states)


def test_new_down_projections_look_in_the_telling_direction():
    torch.manual_seed(0)
    layer = Toy().requires_grad_(requires_grad=False)
    layer.o_proj.weight.zero_()
    values = torch.randn(1, 512, 8) * torch.tensor([9.0, 9, 9, 9, 9, 1, 9, 9]) + 5

    def run() -> tuple[Tensor, Tensor]:
        wanted = (values[0, :, 5] > 5).long()
        logits = layer(values)[0]
        return nn.functional.cross_entropy(logits, wanted, reduction="sum"), torch.arange(512)

    look = survey([glimpse([layer], ("o_proj",), run)], ("o_proj",), 1)["o_proj"]
    down = look.down(2, 3, torch.Generator().manual_seed(0))
    assert look.input_size(down).tolist() == pytest.approx([1.0], abs=1e-3)
    spread = values[0] - values[0].mean(dim=0)
    outputs = spread @ down.flatten(0, 2).T
    telling = torch.corrcoef(torch.cat([outputs, spread[:, 5:6]], dim=1).T)[-1, :-1].abs()
    assert float(telling.min()) > 0.3  # a random direction correlates by about 0.04
    shared = nn.functional.normalize(values[0].mean(dim=0), dim=0)
    assert float((down.flatten(0, 2) @ shared).abs().max()) < 1e-5  # blind to what all samples share
    assert layer(values).equal(nn.functional.linear(values, layer.o_proj.weight))  # no hook is left


def stop_at(call: int) -> Callable[[], None]:
    """Return a check that interrupts at its n-th call."""
    calls = iter(range(1, call + 1))

    def check() -> None:
        if next(calls) == call:
            raise Interrupted("stopping")

    return check


def test_the_survey_can_be_interrupted_between_batches_and_between_layers(parts: Parts):
    encoded = parts.encode()
    state = parts.taught(parts.untaught(), "colors", encoded)
    lesson = Lesson(encoded, parts.store(encoded), tuple(range(len(encoded))), ())
    settings = Hyperparameters(max_steps=20, batch_size=1)
    layers = next(iter(state.shapes.values()))[0]
    assert layers > 1
    for call in (1, len(encoded), len(encoded) + layers):
        steps: list[Any] = []
        with pytest.raises(Interrupted):
            learn(parts.replicas, state, "colors", lesson, settings, report=steps.append, check=stop_at(call))
        assert steps == []


@pytest.mark.parametrize("count", [1, 3])
def test_samples_that_do_not_differ_still_give_a_usable_start(count: int):
    layer = Toy().requires_grad_(requires_grad=False)
    values = torch.full((1, count, 8), 5.0)

    def run() -> tuple[Tensor, Tensor]:
        loss = nn.functional.cross_entropy(layer(values)[0], torch.zeros(count, dtype=torch.long))
        return loss, torch.arange(count)

    look = survey([glimpse([layer], ("o_proj",), run)], ("o_proj",), 1)["o_proj"]
    down = look.down(2, 3, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(down).all())
    assert 0 < float(down.abs().max()) < 1e3


def test_retraining_keeps_where_its_rows_look(parts: Parts):
    encoded = parts.encode()
    state = parts.taught(parts.untaught(), "colors", encoded, random_up=True)
    lesson = Lesson(encoded, parts.store(encoded), tuple(range(len(encoded))), ())
    still = Hyperparameters(max_steps=1).model_copy(update={"learning_rate": 1e-12})
    learned = learn(parts.replicas, state, "colors", lesson, still)
    assert torch.allclose(learned.state.down["o_proj"], state.down["o_proj"], atol=1e-6)
