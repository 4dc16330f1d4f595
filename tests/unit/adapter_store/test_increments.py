"""Increments on the tiny model against the frozen linears and against materialized float64 weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from adapter_store.base.load import Base
from adapter_store.errors import BaseModelError, StateInvalid
from adapter_store.increments import AdaptedLinear, Bank, Increments, Term, attach, gate_of
from adapter_store.state import AdapterState

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IDS = torch.randint(5, 300, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[("o_proj",), ALL], ids=["o_proj", "all"])
def increments(loaded_tiny_base: Base, request: pytest.FixtureRequest) -> Iterator[Increments]:
    handle = attach(loaded_tiny_base.model, request.param)
    yield handle
    handle.detach()


@pytest.fixture
def on_o_proj(loaded_tiny_base: Base) -> Iterator[Increments]:
    handle = attach(loaded_tiny_base.model, ["o_proj"])
    yield handle
    handle.detach()


def make_state(shapes: dict, rows: int = 5, rank: int = 2, seed: int = 0, scale: float = 0.3) -> AdapterState:
    generator = torch.Generator().manual_seed(seed)
    state = AdapterState.empty("d", shapes, query_width=4, rank=rank).expand("a", rows, generator)
    up = {
        name: scale * torch.randn(size[0], rows, size[2], rank, generator=generator)
        for name, size in shapes.items()
    }
    return state.with_rows(range(rows), up=up)


def logits(base: Base, ids: Tensor = IDS) -> Tensor:
    with torch.inference_mode():
        return base.model(input_ids=ids).logits.clone()


def coefficients(rows: int, batch: int = 3, seed: int = 1) -> Tensor:
    return torch.rand(batch, rows, generator=torch.Generator().manual_seed(seed))


def test_i1_zero_coefficients_give_the_base_bit_for_bit(loaded_tiny_base: Base) -> None:
    plain = logits(loaded_tiny_base)
    handle = attach(loaded_tiny_base.model, ALL)
    try:
        bank = Bank.from_state(make_state(handle.shapes))
        assert torch.equal(logits(loaded_tiny_base), plain)
        with handle.active([]):
            assert torch.equal(logits(loaded_tiny_base), plain)
        with handle.active([Term(bank, torch.zeros(3, 1, bank.width))]):
            assert torch.equal(logits(loaded_tiny_base), plain)
        with handle.active([Term(bank, torch.ones(3, 1, bank.width))]):
            assert not torch.equal(logits(loaded_tiny_base), plain)
        assert torch.equal(logits(loaded_tiny_base), plain)
    finally:
        handle.detach()
    assert torch.equal(logits(loaded_tiny_base), plain)
    assert not any(isinstance(module, AdaptedLinear) for module in loaded_tiny_base.model.modules())


def test_i2_batched_path_equals_materialized_weights(loaded_tiny_base: Base, increments: Increments) -> None:
    state = make_state(increments.shapes)
    c = coefficients(state.rows)
    with increments.active([Term(Bank.from_state(state), gate_of(c, state.rank)[:, None])]):
        found = logits(loaded_tiny_base)
    for row in range(3):
        wanted = materialized_logits(loaded_tiny_base, state, c[row], IDS[row : row + 1])
        error = (found[row].double() - wanted).norm() / wanted.norm()
        assert error < 1e-5


def materialized_logits(base: Base, state: AdapterState, c: Tensor, ids: Tensor) -> Tensor:
    """Run ``W0 + sum c_n B_n A_n`` in float64."""
    model = copy.deepcopy(base.model).double()
    for name in state.targets:
        modules = [
            module for path, module in model.model.language_model.named_modules() if path.endswith(f".{name}")
        ]
        for layer, module in enumerate(modules):
            down, up = state.down[name][layer].double(), state.up[name][layer].double()
            delta = torch.einsum("n,nor,nri->oi", c.double(), up, down)
            assert isinstance(module, AdaptedLinear)
            module.linear.weight.data += delta
            module.terms = []
    with torch.no_grad():
        return model(input_ids=ids).logits[0]


def test_i3_output_does_not_depend_on_batch_mates(loaded_tiny_base: Base, increments: Increments) -> None:
    state = make_state(increments.shapes)
    bank = Bank.from_state(state)
    c = coefficients(state.rows)

    def run(rows: list[int]) -> Tensor:
        with increments.active([Term(bank, gate_of(c[rows], state.rank)[:, None])]):
            return logits(loaded_tiny_base, IDS[rows])

    together, other_mates, alone = run([0, 1, 2]), run([0, 2, 2]), run([0])
    assert torch.equal(together[0], other_mates[0])
    assert (together[0] - alone[0]).norm() / alone[0].norm() < 1e-5
    assert not torch.allclose(together[1], other_mates[1])


def test_terms_add_up_and_versions_keep_apart(loaded_tiny_base: Base, on_o_proj: Increments) -> None:
    one, two = make_state(on_o_proj.shapes, seed=1), make_state(on_o_proj.shapes, rows=3, seed=2)
    first, second = Bank.from_state(one), Bank.from_state(two)
    g1, g2 = gate_of(coefficients(5), 2)[:, None], gate_of(coefficients(3), 2)[:, None]
    with on_o_proj.active([Term(first, g1), Term(second, g2)]):
        both = logits(loaded_tiny_base)
    stacked = Bank(
        {"o_proj": torch.cat([first.down["o_proj"], second.down["o_proj"]], dim=1)},
        {"o_proj": torch.cat([first.up["o_proj"], second.up["o_proj"]], dim=1)},
        rows=8,
    )
    with on_o_proj.active([Term(stacked, torch.cat([g1, g2], dim=-1))]):
        torch.testing.assert_close(logits(loaded_tiny_base), both, atol=1e-4, rtol=1e-4)
    only_first, only_second = g1.clone(), g2.clone()
    only_first[1:] = 0
    only_second[0] = 0
    with on_o_proj.active([Term(first, only_first), Term(second, only_second)]):
        mixed = logits(loaded_tiny_base)
    with on_o_proj.active([Term(first, g1)]):
        assert torch.equal(mixed[0], logits(loaded_tiny_base)[0])
    with on_o_proj.active([Term(second, g2)]):
        assert torch.equal(mixed[1:], logits(loaded_tiny_base)[1:])


def test_gate_shapes_agree_and_gated_off_tokens_stay_base(
    loaded_tiny_base: Base, on_o_proj: Increments
) -> None:
    state = make_state(on_o_proj.shapes)
    bank, gate = Bank.from_state(state), gate_of(coefficients(5), 2)
    plain = logits(loaded_tiny_base)
    outputs = []
    for shape in (
        gate[:, None],
        gate[:, None].expand(3, 7, -1),
        gate[:, None].expand(3, 7, -1).reshape(21, -1),
    ):
        with on_o_proj.active([Term(bank, shape)]):
            outputs.append(logits(loaded_tiny_base))
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-5, rtol=1e-5)
    late = gate[:, None].repeat(1, 7, 1)
    late[:, :4] = 0
    with on_o_proj.active([Term(bank, late)]):
        partly = logits(loaded_tiny_base)
    assert torch.equal(partly[:, :4], plain[:, :4])
    assert not torch.allclose(partly[:, 4:], plain[:, 4:])


def test_prefix_then_suffix_equals_one_gated_pass(loaded_tiny_base: Base, on_o_proj: Increments) -> None:
    state = make_state(on_o_proj.shapes)
    bank, gate = Bank.from_state(state), gate_of(coefficients(5), 2)[:, None]
    late = gate.repeat(1, 7, 1)
    late[:, :4] = 0
    with on_o_proj.active([Term(bank, late)]):
        wanted = logits(loaded_tiny_base)[:, 4:]
    with torch.inference_mode():
        prefix = loaded_tiny_base.model(input_ids=IDS[:, :4], use_cache=True).past_key_values
        with on_o_proj.active([Term(bank, gate)]):
            found = loaded_tiny_base.model(input_ids=IDS[:, 4:], past_key_values=prefix).logits
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


def test_gradients_reach_the_trained_bank_and_the_gate_only(
    loaded_tiny_base: Base, on_o_proj: Increments
) -> None:
    state = make_state(on_o_proj.shapes)
    frozen = Bank.from_state(state, rows=[0, 1, 2])
    trained = Bank.from_state(state, rows=[3, 4], trainable=True)
    c = coefficients(5).requires_grad_()
    gate = gate_of(c, 2)[:, None]
    with on_o_proj.active([Term(frozen, gate[..., :6]), Term(trained, gate[..., 6:])]):
        output = loaded_tiny_base.model(input_ids=IDS).logits
        output.square().sum().backward()
    whole = Bank.from_state(state)
    with on_o_proj.active([Term(whole, gate.detach())]):
        assert (logits(loaded_tiny_base) - output.detach()).norm() / output.detach().norm() < 1e-5
    assert c.grad is not None
    assert (c.grad != 0).all()
    for tensor in trained.named_tensors().values():
        assert isinstance(tensor, nn.Parameter)
        assert tensor.grad is not None
        assert (tensor.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(tensor.grad is None for tensor in frozen.named_tensors().values())
    assert all(parameter.grad is None for parameter in loaded_tiny_base.model.parameters())


def test_gradient_of_a_term_is_right() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 5).double().requires_grad_(requires_grad=False)
    model = nn.Module()
    model.language_model = nn.Module()
    model.language_model.layers = nn.ModuleList([nn.Module()])
    model.language_model.layers[0].o_proj = linear  # type: ignore[union-attr]
    handle = attach(model, ["o_proj"])
    adapted = model.language_model.layers[0].o_proj  # type: ignore[union-attr]

    def run(x: Tensor, down: Tensor, up: Tensor, gate: Tensor) -> Tensor:
        with handle.active([Term(Bank({"o_proj": down}, {"o_proj": up}, rows=2), gate)]):
            return adapted(x)  # type: ignore[operator]

    shapes = [(2, 3, 6), (1, 2, 2, 6), (1, 2, 2, 5), (2, 1, 4)]
    inputs = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    assert torch.autograd.gradcheck(run, inputs)


def test_bank_is_overwritten_in_place_and_smaller_states_hide_old_rows(
    loaded_tiny_base: Base, on_o_proj: Increments
) -> None:
    large, small = make_state(on_o_proj.shapes, rows=6, seed=3), make_state(on_o_proj.shapes, rows=2, seed=4)
    bank = Bank.allocate(on_o_proj.shapes, rows_capacity=6, rank=2)
    addresses = {name: tensor.data_ptr() for name, tensor in bank.named_tensors().items()}
    bank.fill(large)
    with on_o_proj.active([Term(bank, torch.ones(3, 1, 12))]):
        first = logits(loaded_tiny_base)
    bank.fill(small)
    assert (bank.rows, bank.capacity, bank.width) == (2, 6, 4)
    with on_o_proj.active([Term(bank, torch.ones(3, 1, 4))]):
        second = logits(loaded_tiny_base)
    with on_o_proj.active([Term(Bank.from_state(small), torch.ones(3, 1, 4))]):
        assert torch.equal(second, logits(loaded_tiny_base))
    assert not torch.allclose(first, second)
    assert {name: tensor.data_ptr() for name, tensor in bank.named_tensors().items()} == addresses
    down, up = bank.state_layout()
    assert torch.equal(down["o_proj"], small.down["o_proj"])
    assert torch.equal(up["o_proj"], small.up["o_proj"])
    with pytest.raises(StateInvalid, match="room for 6"):
        bank.fill(make_state(on_o_proj.shapes, rows=7))
    with pytest.raises(StateInvalid, match="rank 3"):
        bank.fill(make_state(on_o_proj.shapes, rank=3))


def test_views_stay_right_after_training_steps(on_o_proj: Increments, loaded_tiny_base: Base) -> None:
    bank = Bank.from_state(make_state(on_o_proj.shapes), trainable=True)
    gate = torch.ones(3, 1, bank.width)
    with on_o_proj.active([Term(bank, gate)]):
        before = logits(loaded_tiny_base)
    with torch.no_grad():
        for tensor in bank.named_tensors().values():
            tensor.mul_(0.5)
    with on_o_proj.active([Term(bank, gate)]):
        assert not torch.allclose(logits(loaded_tiny_base), before)


def test_wrong_gates_and_banks_are_refused(loaded_tiny_base: Base, on_o_proj: Increments) -> None:
    bank = Bank.from_state(make_state(on_o_proj.shapes))
    with pytest.raises(StateInvalid, match="must be 10"), on_o_proj.active([Term(bank, torch.ones(3, 1, 9))]):
        pass
    with (
        pytest.raises(StateInvalid, match="covers 4 tokens"),
        on_o_proj.active([Term(bank, torch.ones(4, 10))]),
    ):
        logits(loaded_tiny_base)
    other = Bank.from_state(make_state({"q_proj": (3, 64, 64)}))
    with pytest.raises(StateInvalid, match="q_proj"), on_o_proj.active([Term(other, torch.ones(3, 1, 10))]):
        pass
    with on_o_proj.active([]):
        logits(loaded_tiny_base)


def test_another_thread_may_not_run_amid_active_terms(on_o_proj: Increments) -> None:
    faults: list[Exception] = []

    def intrude() -> None:
        try:
            with on_o_proj.active([]):
                pass
        except RuntimeError as error:
            faults.append(error)

    with on_o_proj.active([]):
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
    assert len(faults) == 1


def test_attach_finds_only_the_language_model_and_names_what_there_is(loaded_tiny_base: Base) -> None:
    handle = attach(loaded_tiny_base.model, ["q_proj"])
    try:
        assert handle.shapes == {"q_proj": (3, 64, 64)}
        assert attach(loaded_tiny_base.model, ["q_proj"]) is handle
        tower = loaded_tiny_base.model.model.vision_tower
        assert not any(isinstance(module, AdaptedLinear) for module in tower.modules())
        with pytest.raises(BaseModelError, match="already"):
            attach(loaded_tiny_base.model, ["o_proj"])
    finally:
        handle.detach()
    with pytest.raises(BaseModelError, match="down_proj, gate_proj, k_proj"):
        attach(loaded_tiny_base.model, ["fc1"])
    with pytest.raises(BaseModelError, match="not a LLaVA"):
        attach(nn.Linear(2, 2), ["o_proj"])
    with pytest.raises(BaseModelError, match="at least one"):
        attach(loaded_tiny_base.model, [])


def test_a_share_of_the_layers_is_left_alone(loaded_tiny_base: Base) -> None:
    handle = attach(loaded_tiny_base.model, ["o_proj"], 0.5)
    try:
        layers = loaded_tiny_base.model.model.language_model.layers
        kinds = [type(layer.self_attn.o_proj).__name__ for layer in layers]
        assert kinds == ["Linear", "AdaptedLinear", "AdaptedLinear"]
        assert handle.first_layer == 1
        assert handle.shapes["o_proj"][0] == 2
        with pytest.raises(BaseModelError, match="detach"):
            attach(loaded_tiny_base.model, ["o_proj"])
        whole = Bank.allocate({"o_proj": (3, 64, 64)}, 1, 2)
        whole._rows = 1
        with (
            pytest.raises(StateInvalid, match=r"3 layers of o_proj, the model 2"),
            handle.active([Term(whole, torch.zeros(1, 1, 2))]),
        ):
            raise AssertionError("activated")
    finally:
        handle.detach()
    for share in (-0.1, 1.0):
        with pytest.raises(BaseModelError, match="frozen share"):
            attach(loaded_tiny_base.model, ["o_proj"], share)
