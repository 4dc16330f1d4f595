"""Run a Llama with a trainable low-rank change, written for throughput on few CPU cores.

Linears that share an input are stacked into one product; the low-rank change is added to a copy of the
weights once per step, so that a forward pass has one matrix product per stacked linear and only the two thin
factors get gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapter_store.base.trained_part import FUSED_LINEARS


class _LowRankLinear(torch.autograd.Function):
    """Compute `x (W + B A)^T` from the merged weight; gradients for x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, merged: Tensor, down: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(x, merged, down, up)
        return x @ merged.t()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, Tensor, Tensor]:
        (grad,) = grads
        x, merged, down, up = ctx.saved_tensors
        narrow = grad @ up
        return grad @ merged, None, narrow.t() @ x, grad.t() @ (x @ down.t())


class _RmsNorm(torch.autograd.Function):
    """Normalize rows by their root mean square and scale by a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True).add_(eps))
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (grad,) = grads
        x, weight, inverse = ctx.saved_tensors
        scaled = grad * weight
        dot = (scaled * x).mean(-1, keepdim=True).mul_(inverse.square())
        return scaled.addcmul_(x, dot, value=-1.0).mul_(inverse), None, None


class _SwiGlu(torch.autograd.Function):
    """Compute `silu(gate) * up` from both halves stacked along the last axis."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor]:
        (grad,) = grads
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        result = torch.empty_like(both)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        torch.mul(grad, silu, out=result[..., up.shape[-1] :])
        sigmoid.addcmul_(silu, 1.0 - sigmoid).mul_(up).mul_(grad)
        result[..., : up.shape[-1]].copy_(sigmoid)
        return (result,)


class PackedLanguageModel(nn.Module):
    """Hold the frozen Llama and its trainable factors.

    Args:
        state: State dict of a `LlamaForCausalLM` or of LLaVA's language model (names from `layers.` on).
        config: Its `LlamaConfig`.
        rank: Rank of the change of every stacked linear; 0 for none.
    """

    def __init__(self, state: Mapping[str, Tensor], config: Any, rank: int) -> None:
        super().__init__()
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width = config.hidden_size // self.heads
        self.eps = float(config.rms_norm_eps)
        self.layers = int(config.num_hidden_layers)
        theta = float(config.rope_parameters["rope_theta"])
        self.frequencies = theta ** (-torch.arange(0, self.width, 2, dtype=torch.float32) / self.width)
        self.embedding = state["embed_tokens.weight"].detach()
        self.final_norm = state["norm.weight"].detach()
        self.frozen: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self.factors = nn.ParameterDict()
        self.merged: dict[str, Tensor] = {}
        for layer in range(self.layers):
            stem = f"layers.{layer}."
            for name in ("input_layernorm", "post_attention_layernorm"):
                self.norms[f"{layer}.{name}"] = state[f"{stem}{name}.weight"].detach()
            for fused, linears in FUSED_LINEARS.items():
                weight = torch.cat([state[f"{stem}{linear}.weight"].detach() for linear in linears])
                key = f"{layer}_{fused}"
                self.frozen[key] = weight
                self.merged[key] = weight.clone() if rank else weight
                if rank:
                    down = torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5
                    self.factors[key + "_a"] = nn.Parameter(down)
                    self.factors[key + "_b"] = nn.Parameter(torch.zeros(weight.shape[0], rank))

    @torch.no_grad()
    def refresh(self, part: int = 0, parts: int = 1) -> None:
        """Write `W + B A` of every linear (or every `parts`-th) into the merged copies after a step."""
        for key, weight in list(self.frozen.items())[part::parts]:
            if f"{key}_a" in self.factors:
                up, down = self.factors[f"{key}_b"], self.factors[f"{key}_a"]
                torch.addmm(weight, up, down, out=self.merged[key])

    def low_rank(self) -> dict[str, Tensor]:
        """Return the factors under the names that a trained part uses."""
        result: dict[str, Tensor] = {}
        for key, value in self.factors.items():
            layer, rest = key.split("_", 1)
            fused, letter = rest.rsplit("_", 1)
            result[f"layers.{layer}.{fused}.{letter}"] = value.detach().clone()
        return result

    def _linear(self, x: Tensor, layer: int, fused: str) -> Tensor:
        key = f"{layer}_{fused}"
        if f"{key}_a" not in self.factors:
            return x @ self.merged[key].t()
        down, up = self.factors[f"{key}_a"], self.factors[f"{key}_b"]
        return _LowRankLinear.apply(x, self.merged[key], down, up)  # pyright: ignore[reportReturnType]

    def forward(self, embedded: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return the final normalized hidden states.

        Args:
            embedded: `[rows, length, hidden]` input embeddings.
            positions: `[rows, length]` position of every token in its own conversation.
            mask: `[rows, 1, length, length]` additive attention mask.

        Returns:
            `[rows * length, hidden]`.
        """
        rows, length, hidden = embedded.shape
        angles = positions.unsqueeze(-1) * self.frequencies
        cosine = torch.cat([angles.cos()] * 2, -1).unsqueeze(2)
        sine = torch.cat([-angles.sin(), angles.sin()], -1).unsqueeze(2)
        x = embedded.reshape(rows * length, hidden)
        for layer in range(self.layers):
            x = x + self._attend(x, layer, cosine, sine, mask)
            normed = _RmsNorm.apply(x, self.norms[f"{layer}.post_attention_layernorm"], self.eps)
            both = self._linear(normed, layer, "gate_up")  # pyright: ignore[reportArgumentType]
            x = x + self._linear(_SwiGlu.apply(both), layer, "down")  # pyright: ignore[reportArgumentType]
        return _RmsNorm.apply(x, self.final_norm, self.eps)  # pyright: ignore[reportReturnType]

    def _attend(self, x: Tensor, layer: int, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        rows, length = mask.shape[0], mask.shape[-1]
        normed = _RmsNorm.apply(x, self.norms[f"{layer}.input_layernorm"], self.eps)
        stacked = self._linear(normed, layer, "qkv")  # pyright: ignore[reportArgumentType]
        stacked = stacked.view(rows, length, self.heads + 2 * self.groups, self.width)
        turned = _rotate(stacked[:, :, : self.heads + self.groups], cosine, sine).transpose(1, 2)
        query, key = turned[:, : self.heads], turned[:, self.heads :]
        value = stacked[:, :, self.heads + self.groups :].transpose(1, 2)
        times = self.heads // self.groups
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        flat = mixed.transpose(1, 2).reshape(rows * length, self.heads * self.width)
        return self._linear(flat, layer, "o")


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply rotary position embedding to `[rows, length, heads, width]`."""
    half = x.shape[-1] // 2
    swapped = torch.cat([x[..., half:], x[..., :half]], -1)
    return x * cosine + swapped * sine
