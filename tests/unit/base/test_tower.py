"""Check that the SigLIP-shaped tower computes what the DINOv2 weights compute."""

from __future__ import annotations

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, SiglipVisionConfig, SiglipVisionModel

from adapter_store.base.tower import UnexpectedWeights, fold_scale, resize_position_table, siglip_state

HIDDEN, LAYERS, GRID, PATCH = 32, 2, 3, 4


@pytest.fixture(scope="module")
def dino() -> Dinov2Model:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        image_size=PATCH * GRID,
        patch_size=PATCH,
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if "lambda1" in name:
                parameter.uniform_(0.2, 3.0)
    return model


PUBLISHED = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
"""Names that transformers gives the linears -> names in the published weights."""


def _source(dino: Dinov2Model) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in dino.state_dict().items():
        for ours, published in PUBLISHED.items():
            name = name.replace(ours, published)
        renamed[name] = tensor
    renamed["embeddings.position_embeddings"] = renamed["embeddings.position_embeddings"][:, 1:]
    return renamed


@torch.no_grad()
def test_tower_equals_dinov2_without_its_class_token(dino: Dinov2Model) -> None:
    pixels = torch.randn(2, 3, PATCH * GRID, PATCH * GRID)
    hidden = dino.embeddings.patch_embeddings(pixels) + dino.embeddings.position_embeddings[:, 1:]
    layers = next(m for m in dino.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == LAYERS)
    for layer in layers:
        out = layer(hidden)
        hidden = out[0] if isinstance(out, tuple) else out
    config = SiglipVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN * 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        image_size=PATCH * GRID,
        patch_size=PATCH,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        vision_use_head=False,  # pyright: ignore[reportCallIssue]
    )
    tower = SiglipVisionModel(config).eval()
    tower.load_state_dict(siglip_state(_source(dino), LAYERS, GRID))
    read = tower(pixels, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(read, hidden, atol=1e-4 * float(hidden.abs().max()))
    normed = dino.layernorm(hidden)
    assert torch.allclose(tower(pixels).last_hidden_state, normed, atol=1e-3)


def test_folding_a_scale_changes_nothing_but_the_place() -> None:
    torch.manual_seed(1)
    weight, bias, scale, x = torch.randn(5, 3), torch.randn(5), torch.randn(5), torch.randn(7, 3)
    folded_weight, folded_bias = fold_scale(weight, bias, scale)
    assert torch.allclose(x @ folded_weight.T + folded_bias, scale * (x @ weight.T + bias), atol=1e-6)


def test_position_table_keeps_its_own_grid_and_refuses_others() -> None:
    table = torch.randn(1, 25, 4)
    assert torch.allclose(resize_position_table(table, 5), table[0], atol=1e-6)
    assert resize_position_table(table, 3).shape == (9, 4)
    with pytest.raises(UnexpectedWeights, match="26 rows"):
        resize_position_table(torch.zeros(1, 26, 4), 5)


def test_missing_weights_are_named() -> None:
    with pytest.raises(UnexpectedWeights, match="patch_embeddings"):
        siglip_state({}, 1, GRID)
