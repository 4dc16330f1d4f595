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

    def down(self, rows: int, rank: int, generator: torch.Generator) -> Tensor:
        """Return ``[L, rows, rank, d_in]``: mixtures of the telling directions, ``A x`` of spread 1."""
        layers, width = self.mean.shape
        result = torch.empty(layers, rows, rank, width)
        for layer in range(layers):
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


def survey(
    layers: Sequence[nn.Module],
    targets: Sequence[str],
    passes: Sequence[Callable[[], tuple[Tensor, Tensor]]],
) -> dict[str, Look]:
    """Run forward and backward passes of the frozen base and return what was seen of every target.

    Args:
        layers: the decoder layers.
        targets: names of the adapted linears.
        passes: each runs some samples and returns ``(loss, answers)``: the loss, and the flattened indices of
            the tokens that predict the first token of an answer.
    """
    seen = {(target, n): _Sums() for target in targets for n in range(len(layers))}
    for run in passes:
        hooks, taps, sizes = _listen(layers, targets)
        try:
            loss, answers = run()
            loss.backward()
        finally:
            for hook in hooks:
                hook.remove()
        for (target, n), (entered, change) in taps.items():
            assert change.grad is not None
            place = "residual" if target in WRITES_TO_RESIDUAL else target
            seen[target, n].add(entered, change.grad, answers, sizes[place, n])
    return {target: _look_of([seen[target, n] for n in range(len(layers))]) for target in targets}


class _Sums:
    """Inputs and gradients at the answers, and sizes, of one linear."""

    def __init__(self) -> None:
        self._inputs: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._effects: list[float] = []

    def add(self, entered: Tensor, gradient: Tensor, answers: Tensor, effect: float) -> None:
        self._inputs.append(entered.flatten(0, 1)[answers].float())
        self._gradients.append(gradient.flatten(0, 1)[answers].float())
        self._effects.append(effect)

    def summary(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return mean, spread, aim and effect."""
        entered, gradients = torch.cat(self._inputs), torch.cat(self._gradients)
        mean = entered.mean(dim=0)
        centered = entered - mean
        floor = FLOOR * float(entered.pow(2).mean()) + LEAST
        spread = centered.T @ centered / len(entered) + floor * torch.eye(len(mean), device=mean.device)
        aim = gradients.T @ centered / len(entered)
        return mean, spread, aim, sum(self._effects) / len(self._effects)


def _look_of(sums: Sequence[_Sums]) -> Look:
    means, spreads, aims, effects = zip(*(layer.summary() for layer in sums), strict=True)
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
