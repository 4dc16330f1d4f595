"""Rebuild a DINOv2 vision transformer as a SigLIP-shaped tower.

SigLIP's encoder is the same pre-norm transformer but without LayerScale and without a class token. LayerScale
is a per-channel factor on a linear's output, so it folds into that linear; the class token is left out and
the projector learns on what remains. The result needs no special code in any library that knows SigLIP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapter_store.errors import StrataError

_PREFIX = "backbone."
_NODE_TO_WEIGHT = re.compile(r"^/backbone/(.+)/MatMul$")


class UnexpectedWeights(StrataError):
    """Report that a weight file does not hold the tensors it should."""


def read_onnx_tensors(onnx_bytes: bytes) -> dict[str, Tensor]:
    """Read the backbone's parameters out of an ONNX file.

    Biases and norms keep their names as initializers; the weight of a linear is anonymous there and is found
    through the MatMul node that uses it. ONNX stores it `[d_in, d_out]`; the result is `[d_out, d_in]`.

    Returns:
        Tensors by their DINOv2 parameter name, plus `embeddings.position_embeddings` `[1, patches, hidden]`
        (patches only, as stored in the file).
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(onnx_bytes).graph
    initializers = {item.name: item for item in graph.initializer}
    tensors: dict[str, Tensor] = {}
    for name, item in initializers.items():
        if name.startswith(_PREFIX):
            tensors[name.removeprefix(_PREFIX)] = _to_tensor(numpy_helper.to_array(item))
    for node in graph.node:
        match = _NODE_TO_WEIGHT.match(node.name)
        if node.op_type == "MatMul" and match and node.input[1] in initializers:
            weight = _to_tensor(numpy_helper.to_array(initializers[node.input[1]]))
            tensors[match.group(1).replace("/", ".") + ".weight"] = weight.T.contiguous()
    tensors["embeddings.position_embeddings"] = _position_table(initializers, numpy_helper)
    return tensors


def _position_table(initializers: Mapping[str, Any], numpy_helper: Any) -> Tensor:
    hidden = list(initializers["backbone.embeddings.cls_token"].dims)[-1]
    for item in initializers.values():
        dims = list(item.dims)
        if len(dims) == 3 and dims[0] == 1 and dims[2] == hidden and dims[1] > 1:
            return _to_tensor(numpy_helper.to_array(item))
    raise UnexpectedWeights("the ONNX file holds no position table of shape [1, patches, hidden]")


def _to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def resize_position_table(table: Tensor, grid: int) -> Tensor:
    """Interpolate a position table to another grid as DINOv2 does: bicubic, corners not aligned.

    Args:
        table: `[1, side * side, hidden]`, patches only.
        grid: Wanted side length in patches.

    Returns:
        `[grid * grid, hidden]`.
    """
    side = round(table.shape[1] ** 0.5)
    if side * side != table.shape[1]:
        raise UnexpectedWeights(f"a position table of {table.shape[1]} rows is not a square grid")
    square = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(grid * grid, -1).contiguous()


def fold_scale(weight: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Fold a per-channel factor on a linear's output into the linear.

    Args:
        weight: `[d_out, d_in]`.
        bias: `[d_out]`.
        scale: `[d_out]`, LayerScale's lambda.

    Returns:
        The folded `(weight, bias)`: `scale * (x W^T + b) = x (scale W)^T + scale b`.
    """
    return weight * scale.unsqueeze(1), bias * scale


def siglip_state(tensors: Mapping[str, Tensor], layers: int, grid: int) -> dict[str, Tensor]:
    """Rename and fold DINOv2 parameters into those of a `SiglipVisionModel` without pooling head.

    Args:
        tensors: As `read_onnx_tensors` returns them.
        layers: Number of transformer layers.
        grid: Side length of the image in patches.

    Raises:
        UnexpectedWeights: If a parameter is missing.
    """
    try:
        state = {
            "embeddings.patch_embedding.weight": tensors["embeddings.patch_embeddings.projection.weight"],
            "embeddings.patch_embedding.bias": tensors["embeddings.patch_embeddings.projection.bias"],
            "embeddings.position_embedding.weight": resize_position_table(
                tensors["embeddings.position_embeddings"], grid
            ),
        }
        for index in range(layers):
            state.update(_layer_state(tensors, index))
    except KeyError as error:
        raise UnexpectedWeights(f"the vision weights lack {error.args[0]!r}") from error
    hidden = state["embeddings.patch_embedding.bias"].shape[0]
    state["post_layernorm.weight"] = tensors.get("layernorm.weight", torch.ones(hidden))
    state["post_layernorm.bias"] = tensors.get("layernorm.bias", torch.zeros(hidden))
    return state


def _layer_state(tensors: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    source, target = f"encoder.layer.{index}.", f"encoder.layers.{index}."
    state: dict[str, Tensor] = {}
    for part in ("weight", "bias"):
        state[f"{target}layer_norm1.{part}"] = tensors[f"{source}norm1.{part}"]
        state[f"{target}layer_norm2.{part}"] = tensors[f"{source}norm2.{part}"]
        state[f"{target}mlp.fc1.{part}"] = tensors[f"{source}mlp.fc1.{part}"]
        for short, name in (("q", "query"), ("k", "key"), ("v", "value")):
            state[f"{target}self_attn.{short}_proj.{part}"] = tensors[
                f"{source}attention.attention.{name}.{part}"
            ]
    for scale, old, new in (
        ("layer_scale1.lambda1", "attention.output.dense", "self_attn.out_proj"),
        ("layer_scale2.lambda1", "mlp.fc2", "mlp.fc2"),
    ):
        weight, bias = tensors[f"{source}{old}.weight"], tensors[f"{source}{old}.bias"]
        folded = fold_scale(weight, bias, tensors[source + scale])
        state[f"{target}{new}.weight"], state[f"{target}{new}.bias"] = folded
    return state
