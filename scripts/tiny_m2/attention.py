"""Causal attention over a stream of sequences, with a backward pass made of batched bfloat16 products.

torch's own CPU backward of flash attention does not reach the matrix units and takes a third of a training step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor


class StreamAttention(torch.autograd.Function):
    """q [T, heads, D], k and v [T, kv heads, D] in bfloat16 and sequence lengths -> [T, heads, D]."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.lengths = lengths
        out = torch.empty_like(q)
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            start += length
            heads = [x[part].transpose(0, 1)[None] for x in (q, k, v)]
            out[part] = functional.scaled_dot_product_attention(*heads, is_causal=True)[0].transpose(0, 1)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        future = torch.ones(max(ctx.lengths), max(ctx.lengths), dtype=torch.bool).triu(1)
        start = 0
        for length in ctx.lengths:
            part = slice(start, start + length)
            start += length
            pieces = _sequence_gradients(q[part], k[part], v[part], grad[part], future[:length, :length])
            for whole, piece in zip(grads, pieces, strict=True):
                whole[part] = piece
        return *grads, None


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Fold query heads [L, heads, D] into their key groups: [groups, heads / groups * L, D]."""
    return x.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(1, 2)


def _sequence_gradients(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, future: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients shaped as q [L, heads, D], k and v [L, groups, D]; future [L, L] marks masked pairs."""
    length, groups, width = k.shape
    q_rows, grad_rows = _grouped(q, groups), _grouped(grad, groups)
    k_rows, v_rows = k.transpose(0, 1), v.transpose(0, 1)
    scores = torch.bmm(q_rows, k_rows.mT).mul_(width**-0.5).view(groups, -1, length, length)
    chances = torch.softmax(scores.masked_fill_(future, float("-inf")), -1).flatten(1, 2)
    grad_v = torch.bmm(chances.mT, grad_rows)
    grad_chances = torch.bmm(grad_rows, v_rows.mT)
    grad_scores = torch._softmax_backward_data(grad_chances, chances, -1, torch.bfloat16).mul_(width**-0.5)
    grad_q = torch.bmm(grad_scores, k_rows).view(groups, -1, length, width).permute(2, 0, 1, 3).flatten(1, 2)
    grad_k = torch.bmm(grad_scores.mT, q_rows)
    return grad_q, grad_k.transpose(0, 1), grad_v.transpose(0, 1)
