"""The architecture in plain torch, written for fast CPU training: bfloat16 products, float32 master weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from tiny_m2.attention import StreamAttention
from tiny_m2.fp8 import fake_quantize

ROW_BLOCK = 256


@dataclass(frozen=True)
class Shape:
    """Sizes of the model, named as in config.json."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 64
    rotary_dim: int = 32
    num_local_experts: int = 16
    num_experts_per_tok: int = 4
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 4096


class _GroupedLinear(torch.autograd.Function):
    """rows [R, K] sorted by expert times weights [E, N, K] -> [R, N]; bounds are the E + 1 row offsets."""

    @staticmethod
    def forward(ctx, rows: Tensor, weights: Tensor, bounds: list[int]) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.bounds = bounds
        out = rows.new_empty(rows.shape[0], weights.shape[1])
        for expert in range(weights.shape[0]):
            span = slice(bounds[expert], bounds[expert + 1])
            torch.mm(rows[span], weights[expert].t(), out=out[span])
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weights = ctx.saved_tensors
        grad = grad.contiguous()
        grad_rows, grad_weights = torch.empty_like(rows), torch.empty_like(weights)
        for expert in range(weights.shape[0]):
            span = slice(ctx.bounds[expert], ctx.bounds[expert + 1])
            torch.mm(grad[span], weights[expert], out=grad_rows[span])
            torch.mm(grad[span].t(), rows[span], out=grad_weights[expert])
        return grad_rows, grad_weights, None


class _Dispatch(torch.autograd.Function):
    """Copy tokens [T, H] to their padded expert rows [R, H]; padding rows repeat token 0 and get no gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, token: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return grad.index_select(0, slots.flatten()).view(*slots.shape, -1).sum(1), None, None


class _Combine(torch.autograd.Function):
    """Sum each token's rows [R, H] with weights [T, k] to float32 [T, H]; padding rows get zero gradient."""

    @staticmethod
    def forward(ctx, rows: Tensor, weights: Tensor, token: Tensor, slots: Tensor) -> Tensor:
        picked = rows.index_select(0, slots.flatten()).view(*slots.shape, -1)
        ctx.save_for_backward(picked, weights, token, slots)
        return torch.bmm(weights.to(torch.bfloat16)[:, None], picked)[:, 0].float()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        picked, weights, token, slots = ctx.saved_tensors
        grad = grad.to(torch.bfloat16)
        grad_weights = torch.bmm(picked, grad[:, :, None])[:, :, 0].float()
        factor = torch.zeros(token.shape[0], dtype=torch.bfloat16)
        factor[slots.flatten()] = weights.flatten().to(torch.bfloat16)
        return grad.index_select(0, token) * factor[:, None], grad_weights, None, None


def padded_slots(counts: Tensor) -> tuple[Tensor, list[int]]:
    """Place sorted rows so that every expert starts at a multiple of ROW_BLOCK.

    Takes rows per expert [E]; returns the slot of each sorted row [sum of counts] and the E + 1 padded bounds. Few
    distinct row counts let oneDNN reuse its compiled kernels instead of building one for every new size.
    """
    padded = (counts + ROW_BLOCK - 1) // ROW_BLOCK * ROW_BLOCK
    shift = padded.cumsum(0) - padded - (counts.cumsum(0) - counts)
    slots = torch.arange(int(counts.sum())) + shift.repeat_interleave(counts)
    return slots, [0, *padded.cumsum(0).tolist()]


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Normalise x [..., N] over its last dimension in float32."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight


class Layer(nn.Module):
    """One decoder layer; expert weights are stacked, w13 holds w1 rows then w3 rows [E, 2 * I, H]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        hidden, width = shape.hidden_size, shape.head_dim
        q_width, kv_width = shape.num_attention_heads * width, shape.num_key_value_heads * width
        inner, experts = shape.intermediate_size, shape.num_local_experts
        small = (2 * shape.num_hidden_layers) ** -0.5
        self.q_proj = nn.Parameter(torch.randn(q_width, hidden) * hidden**-0.5)
        self.k_proj = nn.Parameter(torch.randn(kv_width, hidden) * hidden**-0.5)
        self.v_proj = nn.Parameter(torch.randn(kv_width, hidden) * hidden**-0.5)
        self.o_proj = nn.Parameter(torch.randn(hidden, q_width) * q_width**-0.5 * small)
        self.w13 = nn.Parameter(torch.randn(experts, 2 * inner, hidden) * hidden**-0.5)
        self.w2 = nn.Parameter(torch.randn(experts, hidden, inner) * inner**-0.5 * small)
        self.gate = nn.Parameter(torch.randn(experts, hidden) * 0.02)
        self.q_norm = nn.Parameter(torch.full((q_width,), 1.5))
        self.k_norm = nn.Parameter(torch.full((kv_width,), 1.5))
        self.input_norm = nn.Parameter(torch.ones(hidden))
        self.post_norm = nn.Parameter(torch.ones(hidden))
        self.register_buffer("correction_bias", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts), persistent=False)

    def _weight(self, weight: Tensor, fp8: bool) -> Tensor:
        return (fake_quantize(weight) if fp8 else weight).to(torch.bfloat16)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: list[int], fp8: bool) -> Tensor:
        """Causal attention within each sequence; x [T, H], cos and sin [T, rotary_dim / 2] -> [T, H]."""
        shape = self.shape
        h = rms_norm(x, self.input_norm, shape.rms_norm_eps).to(torch.bfloat16)
        qkv = h @ torch.cat([self._weight(w, fp8) for w in (self.q_proj, self.k_proj, self.v_proj)]).t()
        q, k, v = qkv.split([self.q_proj.shape[0], self.k_proj.shape[0], self.v_proj.shape[0]], dim=-1)
        q = rms_norm(q.float(), self.q_norm, shape.rms_norm_eps).unflatten(-1, (-1, shape.head_dim))
        k = rms_norm(k.float(), self.k_norm, shape.rms_norm_eps).unflatten(-1, (-1, shape.head_dim))
        q, k = rotate(q, cos, sin).to(torch.bfloat16), rotate(k, cos, sin).to(torch.bfloat16)
        v = v.unflatten(-1, (-1, shape.head_dim))
        mixed = StreamAttention.apply(q, k, v, lengths).flatten(1)
        return (mixed @ self._weight(self.o_proj, fp8).t()).float()

    def route(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return chosen experts [T, k] and their normalised, unbiased sigmoid scores [T, k] for float32 h [T, H]."""
        scores = torch.sigmoid(h @ self.gate.t())
        chosen = torch.topk(scores + self.correction_bias, self.shape.num_experts_per_tok, dim=-1).indices
        weights = scores.gather(1, chosen)
        return chosen, weights / weights.sum(-1, keepdim=True)

    def experts(self, x: Tensor, fp8: bool) -> Tensor:
        """Mixture of experts over x [T, H] -> [T, H]; adds the expert counts to `load`."""
        h = rms_norm(x, self.post_norm, self.shape.rms_norm_eps)
        chosen, weights = self.route(h)
        flat = chosen.flatten()
        order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=self.shape.num_local_experts)
        self.load += counts
        slots, bounds = padded_slots(counts)
        slot_of_row = torch.empty_like(order)
        slot_of_row[order] = slots
        token = torch.zeros(bounds[-1], dtype=torch.long)
        token[slots] = order // self.shape.num_experts_per_tok
        rows = _Dispatch.apply(h.to(torch.bfloat16), token, slot_of_row.view(chosen.shape))
        gate, up = _GroupedLinear.apply(rows, self._weight(self.w13, fp8), bounds).chunk(2, dim=-1)
        rows = _GroupedLinear.apply(functional.silu(gate) * up, self._weight(self.w2, fp8), bounds)
        return _Combine.apply(rows, weights, token, slot_of_row.view(chosen.shape))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: list[int], fp8: bool) -> Tensor:
        """Return x [T, H] after attention and experts."""
        x = x + self.attention(x, cos, sin, lengths, fp8)
        return x + self.experts(x, fp8)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first rotary_dim values of each head, NeoX style; x [T, heads, D], cos and sin [T, rotary_dim / 2]."""
    half = cos.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


class TinyM2(nn.Module):
    """The whole model over a flat stream of sequences without padding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.lm_head = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * 0.02)
        frequency = shape.rope_theta ** -(torch.arange(0, shape.rotary_dim, 2).float() / shape.rotary_dim)
        angles = torch.arange(shape.max_position_embeddings).float()[:, None] * frequency
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor, lengths: list[int], fp8: bool = False) -> Tensor:
        """Return normalised hidden states [T, H] of the token stream [T] made of sequences of the given lengths."""
        cos = torch.cat([self.cos[:length] for length in lengths])
        sin = torch.cat([self.sin[:length] for length in lengths])
        x = functional.embedding(tokens, self.embed)
        for layer in self.layers:
            x = layer(x, cos, sin, lengths, fp8)
        return rms_norm(x, self.norm, self.shape.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits [N, V] of hidden states [N, H]."""
        return (hidden.to(torch.bfloat16) @ self.lm_head.to(torch.bfloat16).t()).float()
