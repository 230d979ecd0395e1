"""On which device and in which precision a pass computes."""

from __future__ import annotations

import torch

from quantkit.errors import BadInput
from quantkit.model.spec import HParams

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AUTOMATIC = "auto"

# Up to so many multiply-adds float32 costs seconds on any machine, and rounding would gain nothing.
CHEAP = 5e12


def find_device(name: str) -> torch.device:
    """`cpu` or `cuda`; raises BadInput when this machine or this torch has no such device."""
    if name not in ("cpu", "cuda"):
        raise BadInput(f"--device {name!r}: choose cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: torch finds no CUDA device here; install a CUDA build of torch, or use cpu")
    return torch.device(name)


def find_dtype(name: str, hparams: HParams, tokens: int, device: torch.device) -> torch.dtype:
    """The dtype of the matrix products; `auto` takes bfloat16 where it is native and the pass is not cheap anyway."""
    if name in PRECISIONS:
        return PRECISIONS[name]
    if name != AUTOMATIC:
        raise BadInput(f"--precision {name!r}: choose {', '.join([AUTOMATIC, *PRECISIONS])}")
    return torch.bfloat16 if multiply_adds(hparams, tokens) > CHEAP and _native_bfloat16(device) else torch.float32


def multiply_adds(hparams: HParams, tokens: int) -> int:
    """Multiplications that the matrices of all layers take for `tokens`, attention scores not counted."""
    heads = (2 * hparams.n_heads + 2 * hparams.n_kv_heads) * hparams.head_dim
    experts = 3 * hparams.n_experts_used * hparams.expert_width
    return tokens * hparams.n_layers * hparams.hidden * (heads + experts + hparams.n_experts)


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
