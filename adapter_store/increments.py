"""How a pool of increments acts on the frozen language model: two products and a scale per adapted linear.

For every adapted linear, ``y = W0 x + B_all (repeat(c, r) * (A_all x))`` (eq. 6). All increments of a version
lie stacked in a ``Bank``; a ``Term`` is a bank with the gate ``repeat(c, r)`` of each token. Several terms
add up: one per version that is present in a serving batch, or a frozen and a trained one in training. A large
pool acts through a ``GatheredTerm`` instead, by the few increments that each request touches.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapter_store.bank import Bank, gate_of
from adapter_store.errors import BaseModelError, StateInvalid, TargetMismatch
from adapter_store.gathering import ActiveParts, GatheredTerm
from adapter_store.state import AdapterState, Shape

__all__ = ["AdaptedLinear", "Bank", "GatheredTerm", "Increments", "Term", "attach", "check_shapes", "gate_of"]

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """Pair a bank with each token's gate.

    Attributes:
        bank: the increments.
        gate: ``[B, T, R]``, ``[B, 1, R]`` (the same for all tokens of a row) or ``[tokens, R]``, R the
            bank's ``width``; zero switches a token back to the base.
        rows: which rows of the batch a three-dimensional gate is for, ``[B]`` int64, others are not even
            computed; None is all of them. For inference only.
    """

    bank: Bank
    gate: Tensor
    rows: Tensor | None = None


def check_shapes(state: AdapterState, name: str, shapes: Mapping[str, Shape]) -> None:
    """Raise TargetMismatch, with what to set, unless ``state``, called ``name``, has these shapes."""
    if state.shapes != shapes:
        raise TargetMismatch(
            f"{name} adapts {state.shapes}, this program's model {shapes}: "
            f"set STRATA_TARGETS={','.join(state.shapes)} and the STRATA_FROZEN_SHARE it was taught with"
        )


class Increments:
    """Hold the adapted linears of one model and say which terms act; made by ``attach``.

    One thread at a time may run the model with active terms. ``paths`` are the full module paths of the
    adapted linears in the model, by target, in layer order.
    """

    def __init__(
        self,
        modules: dict[str, list[AdaptedLinear]],
        places: list[tuple[nn.Module, str]],
        first_layer: int = 0,
        frozen_share: float = 0.0,
        paths: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.paths = dict(paths or {})
        self.first_layer = first_layer
        self.frozen_share = frozen_share
        self._modules = modules
        self._places = places
        self._active: list[_Acting] = []
        self._owner: int | None = None
        self.attached = True

    @property
    def targets(self) -> tuple[str, ...]:
        """Return the names of the adapted linears."""
        return tuple(self._modules)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Return ``(layers, d_in, d_out)`` per target."""
        return {
            name: (len(modules), modules[0].linear.in_features, modules[0].linear.out_features)
            for name, modules in self._modules.items()
        }

    def check_fits(self, state: AdapterState, name: str) -> None:
        """Raise TargetMismatch, with what to set, unless ``state`` (called ``name``) adapts these linears."""
        check_shapes(state, name, self.shapes)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype in which the linears compute."""
        return next(iter(self._modules.values()))[0].linear.weight.dtype

    @property
    def device(self) -> torch.device:
        """Return where the first adapted linear lies."""
        return next(iter(self._modules.values()))[0].linear.weight.device

    @contextmanager
    def active(self, terms: Sequence[Term | GatheredTerm]) -> Iterator[None]:
        """Let ``terms`` act on every forward pass inside the block; none leaves the untouched base.

        Raises:
            StateInvalid: a gate's width is not its bank's, or a bank lacks a target.
        """
        thread = threading.get_ident()
        if self._owner not in (None, thread):
            raise RuntimeError(
                "another thread runs this model with active increments: use one thread per model"
            )
        before, owner = self._active, self._owner
        prepared = [self._prepare(term) for term in terms if isinstance(term, GatheredTerm) or term.bank.rows]
        self._set(prepared, thread)
        try:
            yield
        finally:
            self._set(before, owner)

    def detach(self) -> None:
        """Put the plain linears back into the model."""
        modules = [module for group in self._modules.values() for module in group]
        for (parent, name), module in zip(self._places, modules, strict=True):
            setattr(parent, name, module.linear)
        self.attached = False

    def _set(self, terms: list[_Acting], owner: int | None) -> None:
        self._active, self._owner = terms, owner
        for modules in self._modules.values():
            for module in modules:
                module.terms = terms

    def _prepare(self, term: Term | GatheredTerm) -> _Acting:
        if isinstance(term, GatheredTerm):
            return term.prepare(self.dtype, self.device, len(self._places))
        bank = term.bank
        if set(bank.down) != set(self._modules):
            raise StateInvalid(f"the bank adapts {sorted(bank.down)}, the model {sorted(self._modules)}")
        for target, modules in self._modules.items():
            if len(bank.down[target]) != len(modules):
                text = f"the bank adapts {len(bank.down[target])} layers of {target}"
                raise StateInvalid(f"{text}, the model {len(modules)}")
        if term.gate.ndim not in (2, 3) or term.gate.shape[-1] != bank.width:
            raise StateInvalid(f"the gate is {list(term.gate.shape)}, its last size must be {bank.width}")
        pairs = bank.factors(self.targets, self.dtype)
        gate = term.gate.to(self.device, self.dtype)
        if term.rows is not None:
            if gate.ndim != 3 or len(gate) != len(term.rows):
                raise StateInvalid(f"the gate is {list(gate.shape)} for {len(term.rows)} rows of the batch")
            return _RowsTerm(pairs, gate, term.rows.to(self.device))
        shared = gate.ndim == 3 and gate.shape[1] == 1
        flat = gate.reshape(-1, bank.width)
        return _ActiveTerm(pairs, flat, gate if shared else None)


class AdaptedLinear(nn.Module):
    """Run a frozen linear and add the active terms; without terms its output is the linear's own."""

    def __init__(self, linear: nn.Linear, slot: int) -> None:
        super().__init__()
        self.linear = linear
        self.slot = slot
        self.terms: list[_Acting] = []

    @property
    def weight(self) -> Tensor:
        """Return the frozen weight ``[d_out, d_in]``."""
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        """Return the frozen bias."""
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., d_in]`` to ``[..., d_out]`` (eq. 6)."""
        y = self.linear(x)
        for term in self.terms:
            y = term.add(y, x, self.slot)
        return y


@dataclass(frozen=True, slots=True, eq=False)
class _ActiveTerm:
    """Hold one term ready for use: its layers' factors by slot, and the gate as rows."""

    pairs: list[tuple[Tensor, Tensor]]
    gate: Tensor
    shared_gate: Tensor | None

    def add(self, y: Tensor, x: Tensor, slot: int) -> Tensor:
        """Return ``y + ((x A^T) * gate) B^T``, in place where no gradient flows."""
        down, up = self.pairs[slot]
        hidden = F.linear(x.reshape(-1, x.shape[-1]), down)
        rows = y.view(-1, y.shape[-1])
        if torch.is_grad_enabled() and (
            hidden.requires_grad or self.gate.requires_grad or up.requires_grad or y.requires_grad
        ):
            return torch.addmm(rows, self._scaled(hidden), up).view_as(y)
        if hidden.shape == self.gate.shape:
            hidden.mul_(self.gate)
        else:
            hidden = self._scaled(hidden)
        rows.addmm_(hidden, up)
        return y

    def _scaled(self, hidden: Tensor) -> Tensor:
        if hidden.shape == self.gate.shape:
            return hidden * self.gate
        if self.shared_gate is None or len(hidden) % len(self.gate):
            raise StateInvalid(f"the gate covers {len(self.gate)} tokens, the model runs {len(hidden)}")
        return (hidden.view(len(self.gate), -1, hidden.shape[-1]) * self.shared_gate).view_as(hidden)


@dataclass(frozen=True, slots=True, eq=False)
class _RowsTerm:
    """Hold one term that acts on some rows of the batch: what overflows there is no other row's NaN."""

    pairs: list[tuple[Tensor, Tensor]]
    gate: Tensor
    rows: Tensor

    def add(self, y: Tensor, x: Tensor, slot: int) -> Tensor:
        """Return ``y`` ``[B, T, d_out]`` with ``((x A^T) * gate) B^T`` added to the term's rows, in place."""
        down, up = self.pairs[slot]
        hidden = F.linear(x.index_select(0, self.rows), down) * self.gate
        return y.index_add_(0, self.rows, hidden @ up)


_Acting = _ActiveTerm | _RowsTerm | ActiveParts


def attach(model: Any, targets: Sequence[str], frozen_share: float = 0.0) -> Increments:
    """Wrap the named linears of a LLaVA's language model, and only there, and return the handle.

    The model's parameters are frozen. Attaching the same targets again returns the same handle.

    Args:
        model: a ``LlavaForConditionalGeneration``.
        targets: last name of each linear, such as ``o_proj``.
        frozen_share: part of the decoder layers, counted from the bottom, that is left alone.

    Raises:
        BaseModelError: a target is not a linear of every layer, or other targets are attached already.
    """
    language_model = _language_model(model)
    existing = _ATTACHED.get(language_model)
    if existing is not None and existing.attached:
        if existing.targets == tuple(targets) and existing.frozen_share == frozen_share:
            return existing
        raise BaseModelError(f"this model is attached to {existing.targets} already: detach it first")
    model.requires_grad_(requires_grad=False)
    everywhere = {target: _linears(language_model, target) for target in targets}
    if not everywhere or len(everywhere) != len(targets):
        raise BaseModelError(f"targets {tuple(targets)} must name at least one linear, and each once")
    if not 0 <= frozen_share < 1:
        raise BaseModelError(f"the frozen share of the layers is {frozen_share}; it lies from 0 to below 1")
    first = int(frozen_share * min(len(linears) for linears in everywhere.values()))
    modules: dict[str, list[AdaptedLinear]] = {}
    places: list[tuple[nn.Module, str]] = []
    for target, linears in everywhere.items():
        modules[target] = []
        for path, linear in linears[first:]:
            adapted = AdaptedLinear(linear, slot=len(places))
            parent, name = language_model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
            setattr(parent, name, adapted)
            modules[target].append(adapted)
            places.append((parent, name))
    within = _path_of(language_model, model)
    paths = {
        target: tuple(f"{within}{path}" for path, _ in linears[first:])
        for target, linears in everywhere.items()
    }
    increments = Increments(modules, places, first, frozen_share, paths)
    _ATTACHED[language_model] = increments
    return increments


def _language_model(model: Any) -> nn.Module:
    inner = getattr(model, "model", model)
    language_model = getattr(inner, "language_model", None)
    if not isinstance(language_model, nn.Module):
        raise BaseModelError(f"{type(model).__name__} has no language_model: it is not a LLaVA")
    return language_model


def _path_of(part: nn.Module, model: nn.Module) -> str:
    """Return the path of a module inside a model as a prefix with its dot, empty for the model itself."""
    path = next(name for name, module in model.named_modules() if module is part)
    return f"{path}." if path else ""


def _linears(language_model: nn.Module, target: str) -> list[tuple[str, nn.Linear]]:
    """Return ``(path, linear)`` of ``target`` in every layer, in layer order."""
    linears = {
        path: module for path, module in language_model.named_modules() if isinstance(module, nn.Linear)
    }
    found = [(path, linear) for path, linear in linears.items() if path.rpartition(".")[2] == target]
    layers = [_LAYER.search(path) for path, _ in found]
    numbers = [int(match.group(1)) for match in layers if match]
    sizes = {(linear.in_features, linear.out_features) for _, linear in found}
    if not found or numbers != list(range(len(found))) or len(sizes) != 1:
        names = sorted({path.rpartition(".")[2] for path in linears})
        raise BaseModelError(
            f"{target!r} is not one linear of every layer; this model has: {', '.join(names)}"
        )
    return found


_ATTACHED: WeakKeyDictionary[nn.Module, Increments] = WeakKeyDictionary()
