"""Start the model with copying already in place: previous-token heads in layer 0, induction heads in layer 1.

Copying a value from the prompt into a tool call needs a head that looks for the last place where the present token
occurred and copies what followed (Olsson et al. 2022, "In-context Learning and Induction Heads"). Left to chance such
heads need thousands of steps to form at this size; planted, they are only refined. The residual stream is laid out as

    dim 0             the same value for every token: lets a query and a key be constant, so that position decides
    dims 1 .. 191     the token itself
    dims 192 .. 255   a projection of the token before, written by layer 0
"""

from __future__ import annotations

import torch
from torch import Tensor

from tiny_m2.model import Layer, TinyM2

CONSTANT = 0
TOKEN = slice(1, 192)
BEFORE = 192
CONSTANT_VALUE = 7.5
FORM_DIMS = 32
FAST_PLANES = 5
OTHER_KEYS = 0.1
PREVIOUS_SHARPNESS = 40.0
MATCH_SHARPNESS = 3.0
COPY_GAIN = 4.0
HEAD_GAIN = 0.06


def _orthonormal(rows: int, columns: int) -> Tensor:
    """Random [rows, columns] with orthonormal rows."""
    return torch.linalg.qr(torch.randn(columns, rows))[0].t().contiguous()


def word_twins(vocabulary: dict[str, int]) -> list[tuple[int, int]]:
    """Return the id pairs of words that exist with and without a leading space; `vocabulary` maps token text to id."""
    return sorted((vocabulary[text], vocabulary[text[1:]]) for text in vocabulary
                  if text.startswith("\u0120") and text[1:] in vocabulary)  # fmt: skip


@torch.no_grad()
def plant_induction(model: TinyM2, twins: list[tuple[int, int]]) -> None:
    """Overwrite parts of the freshly made `model` with the copying circuit. Uses torch's global random state.

    Twins, the same word with and without a space, share most of their vector, so that copying one offers the other.
    """
    tokens = TOKEN.stop - TOKEN.start
    model.embed.normal_(0, 1)
    spaced, bare = (torch.tensor(ids) for ids in zip(*twins, strict=True))
    model.embed[bare, : TOKEN.stop - FORM_DIMS] = model.embed[spaced, : TOKEN.stop - FORM_DIMS]
    model.embed[:, CONSTANT] = CONSTANT_VALUE
    model.embed[:, BEFORE:] = 0
    model.lm_head.zero_()
    model.lm_head[:, TOKEN] = model.embed[:, TOKEN] * HEAD_GAIN
    half = model.shape.head_dim - model.shape.rotary_dim  # the part of a head that position does not turn
    match = [_orthonormal(half, tokens), _orthonormal(half, tokens)]
    _plant_previous(model.layers[0], torch.cat(match))
    _plant_match(model.layers[1], match)


def _plant_previous(layer: Layer, projection: Tensor) -> None:
    """Heads 0 and 1 attend to the token before and write `projection` [64, token dims] of it to the BEFORE dims."""
    shape = layer.shape
    width, planes = shape.head_dim, shape.rotary_dim // 2
    # The fast planes tell neighbours apart; the slow ones would only add the same to every score.
    angle = shape.rope_theta ** -(torch.arange(FAST_PLANES).float() / planes)
    first, second = slice(0, FAST_PLANES), slice(planes, planes + FAST_PLANES)
    # The norm spans all heads: the other one is kept small, so that keys do not differ in length from token to token.
    layer.k_proj *= OTHER_KEYS
    layer.k_norm /= OTHER_KEYS
    layer.k_proj[:width] = 0
    layer.k_proj[first, CONSTANT] = 1 / CONSTANT_VALUE
    layer.k_norm[:width] = 1
    layer.v_proj[:width] = 0
    layer.v_proj[:width, TOKEN] = projection
    for head in (0, 1):
        rows = slice(head * width, (head + 1) * width)
        layer.q_proj[rows] = 0
        # One position behind in every rotary plane: the score is largest where the key stands just before.
        layer.q_proj[rows][first, CONSTANT] = angle.cos() / CONSTANT_VALUE
        layer.q_proj[rows][second, CONSTANT] = -angle.sin() / CONSTANT_VALUE
        layer.q_norm[rows] = PREVIOUS_SHARPNESS
        layer.o_proj[:, rows] = 0
        layer.o_proj[BEFORE:, rows] = torch.eye(width) / 2


def _plant_match(layer: Layer, match: list[Tensor]) -> None:
    """In each key group two heads look for places that follow the present token and copy the token found there.

    The other two heads of a group do the same with the token before the present one, for values whose surroundings
    change: the reasoning says `city Oslo` and the call `city">Oslo`.
    """
    shape = layer.shape
    width, turned = shape.head_dim, shape.rotary_dim
    half = width - turned
    group_heads = shape.num_attention_heads // shape.num_key_value_heads
    copies = _orthonormal(2 * width, TOKEN.stop - TOKEN.start)
    for group, projection in enumerate(match):
        keys = slice(group * width, (group + 1) * width)
        copy = copies[keys]
        layer.k_proj[keys] = 0
        layer.k_proj[keys][turned:, BEFORE + group * half : BEFORE + (group + 1) * half] = torch.eye(half)
        layer.k_norm[keys][turned:] = MATCH_SHARPNESS
        layer.v_proj[keys] = 0
        layer.v_proj[keys, TOKEN] = copy
        for member in range(group_heads):
            head = group * group_heads + member
            rows = slice(head * width, (head + 1) * width)
            layer.q_proj[rows] = 0
            if member < group_heads // 2:
                layer.q_proj[rows][turned:, TOKEN] = projection
            else:
                layer.q_proj[rows][turned:, BEFORE + group * half : BEFORE + (group + 1) * half] = torch.eye(half)
            layer.q_norm[rows][turned:] = MATCH_SHARPNESS
            layer.o_proj[:, rows] = 0
            layer.o_proj[TOKEN, rows] = copy.t() * COPY_GAIN / 2
