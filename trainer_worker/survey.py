"""Look at the frozen base on some training samples before learning: where increments should look, how fast.

A random down projection sees mostly what all samples share, so low-rank learning spends most of its steps on
finding the few directions that differ with the answer. One backward pass over some samples shows them: the
covariance of a linear's input with the gradient at its output. New increments start with down projections
that look in these directions, whitened by how inputs differ between samples and blind to what they share;
their up projections are zero, so they still do exactly nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WRITES_TO_RESIDUAL = ("o_proj", "down_proj")
RIDGE = 0.01
"""Share of the mean input variance added to every direction before whitening."""
FLOOR = 1e-4
"""Share of the inputs' mean square that is taken to differ anyway: few or equal samples differ in nothing."""
LEAST = 1e-12
DIRECTIONS = 24
"""Directions per layer that new down projections mix."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of one target, stacked over layers.

    All at the tokens that predict an answer's first token. ``mean`` ``[L, d_in]`` and ``spread``
    ``[L, d_in, d_in]``: mean and covariance of the inputs; ``aim`` ``[L, d_out, d_in]``: covariance of output
    gradients and inputs; ``effect`` ``[L]``: size of what the output is added to.
    """

    mean: Tensor
    spread: Tensor
    aim: Tensor
    effect: Tensor

    def input_size(self, down: Tensor) -> Tensor:
        """Return by how much ``A x`` differs between samples ``[L]``, for ``down`` ``[L, n, r, d_in]``."""
        flat = down.flatten(1, 2)
        return (flat @ self.spread * flat).sum(dim=2).mean(dim=1).clamp_min(1e-12).sqrt()

    def down(
        self,
        rows: int,
        rank: int,
        generator: torch.Generator,
        *,
        check: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Return ``[L, rows, rank, d_in]``: mixtures of the telling directions, ``A x`` of spread 1.

        ``check`` is called before every layer and may raise to interrupt.
        """
        layers, width = self.mean.shape
        result = torch.empty(layers, rows, rank, width)
        for layer in range(layers):
            check()
            spread = self.spread[layer].cpu()
            ridge = RIDGE * spread.diagonal().mean()
            values, vectors = torch.linalg.eigh(spread + ridge * torch.eye(width))
            whiten = vectors * values.clamp_min(1e-12).rsqrt() @ vectors.T
            aim = self.aim[layer].cpu() @ whiten
            strengths, directions = torch.linalg.eigh(aim.T @ aim)
            count = min(DIRECTIONS, width)
            weight = strengths[-count:].clamp_min(0).sqrt().sqrt() + LEAST
            mixture = torch.randn(rows * rank, count, generator=generator) * weight
            telling = directions[:, -count:].T @ whiten
            looks = F.normalize(mixture, dim=1) @ telling
            shared = F.normalize(self.mean[layer].cpu(), dim=0)
            looks -= (looks @ shared)[:, None] * shared
            result[layer] = looks.view(rows, rank, width)
        return result / self.input_size(result.to(self.spread)).cpu().view(-1, 1, 1, 1)


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What one linear saw in a pass: inputs ``[n, d_in]`` and output gradients ``[n, d_out]`` at answers."""

    inputs: Tensor
    gradients: Tensor
    effect: float


Glimpses = dict[tuple[str, int], Glimpse]
"""By target and layer."""


def glimpse(
    layers: Sequence[nn.Module], targets: Sequence[str], run: Callable[[], tuple[Tensor, Tensor]]
) -> Glimpses:
    """Run one forward and backward pass of the frozen base and return what every target saw.

    Args:
        layers: the decoder layers.
        targets: names of the adapted linears.
        run: runs some samples and returns ``(loss, answers)``: the loss, and the flattened indices of the
            tokens that predict the first token of an answer.
    """
    hooks, taps, sizes = _listen(layers, targets)
    try:
        loss, answers = run()
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    seen: Glimpses = {}
    for (target, n), (entered, change) in taps.items():
        assert change.grad is not None
        place = "residual" if target in WRITES_TO_RESIDUAL else target
        at_answers = (tensor.flatten(0, 1)[answers].float() for tensor in (entered, change.grad))
        seen[target, n] = Glimpse(*at_answers, effect=sizes[place, n])
    return seen


def survey(passes: Sequence[Glimpses], targets: Sequence[str], layers: int) -> dict[str, Look]:
    """Sum up what several passes saw of every target."""
    return {
        target: _look_of([_summary([seen[target, n] for seen in passes]) for n in range(layers)])
        for target in targets
    }


def _summary(seen: Sequence[Glimpse]) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return mean, spread, aim and effect of one linear."""
    entered = torch.cat([one.inputs for one in seen])
    gradients = torch.cat([one.gradients for one in seen])
    mean = entered.mean(dim=0)
    centered = entered - mean
    floor = FLOOR * float(entered.pow(2).mean()) + LEAST
    spread = centered.T @ centered / len(entered) + floor * torch.eye(len(mean), device=mean.device)
    aim = gradients.T @ centered / len(entered)
    return mean, spread, aim, sum(one.effect for one in seen) / len(seen)


def _look_of(layers: Sequence[tuple[Tensor, Tensor, Tensor, float]]) -> Look:
    means, spreads, aims, effects = zip(*layers, strict=True)
    return Look(torch.stack(means), torch.stack(spreads), torch.stack(aims), torch.tensor(effects))


def _listen(
    layers: Sequence[nn.Module], targets: Sequence[str]
) -> tuple[list[Any], dict[tuple[str, int], tuple[Tensor, Tensor]], dict[tuple[str, int], float]]:
    """Hook every target: keep its input and a zero change of its output that collects the gradient."""
    taps: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    sizes: dict[tuple[str, int], float] = {}
    hooks: list[Any] = []

    def on_linear(target: str, n: int) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            change = torch.zeros_like(output, requires_grad=True)
            taps[target, n] = (inputs[0].detach(), change)
            sizes[target, n] = _size(output)
            return output + change

        return hook

    def on_layer(n: int) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            sizes["residual", n] = _size(inputs[0] if inputs else named["hidden_states"])

        return hook

    for n, layer in enumerate(layers):
        for target in targets:
            linear = next(module for path, module in layer.named_modules() if path.endswith(target))
            hooks.append(linear.register_forward_hook(on_linear(target, n)))
        hooks.append(layer.register_forward_pre_hook(on_layer(n), with_kwargs=True))
    return hooks, taps, sizes


def _size(tensor: Tensor) -> float:
    """Return the median over tokens of the root mean square (sink tokens are outliers)."""
    return float(tensor.detach().float().pow(2).mean(dim=-1).sqrt().median())
