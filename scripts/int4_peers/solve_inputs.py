"""What one layer's GPTQ starts from: weights of some experts of a checkpoint, and Hessians of made-up activations."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from int4_peers.outputs import round_to_nearest, widen

ROWS = 1024  # tokens of an expert: fewer than columns, as in a real run
OUTLIERS, OUTLIER_SIZE = 8, 30.0


def write_inputs(checkpoint: Path, experts: int, path: Path) -> None:
    """Write w1, w3, w2 of the first experts of layer 0 of an FP8 `checkpoint`, and what enters them, to `path`.

    Tensors: `E.w1`, `E.w3` [N, K], `E.w2` [K, N], `E.entering` [K, K] and `E.middle` [N, N], all float32; the last two
    are means of x x^T. The middle activations are those that w1 and w3 make of the entering ones.
    """
    generator = torch.Generator().manual_seed(0)
    mixing = None
    tensors = {}
    for expert in range(experts):
        weights = {name: _weight(checkpoint, expert, name) for name in ("w1", "w2", "w3")}
        if mixing is None:
            mixing = _mixing(weights["w1"].shape[1], generator)
        rows = torch.randn(ROWS, len(mixing), generator=generator) @ mixing
        middle = torch.nn.functional.silu(rows @ weights["w1"].T) * (rows @ weights["w3"].T)
        tensors |= {f"{expert}.{name}": weight for name, weight in weights.items()}
        tensors[f"{expert}.entering"] = rows.T @ rows / ROWS
        tensors[f"{expert}.middle"] = middle.T @ middle / ROWS
    save_file(tensors, path, metadata={"experts": str(experts)})


def rounding_losses(path: Path, experts: int, group_size: int) -> list[list[float]]:
    """Output errors tr(dW H dW^T) of plain symmetric rounding: of w1 and w3 together, and of w2, for each expert."""
    held = load_file(path)

    def lost(name: str, hessian: str) -> float:
        difference = held[name] - round_to_nearest(held[name], group_size, symmetric=True)
        return float(((difference @ held[hessian]) * difference).sum(dtype=torch.float64))

    return [
        [lost(f"{e}.w1", f"{e}.entering") + lost(f"{e}.w3", f"{e}.entering"), lost(f"{e}.w2", f"{e}.middle")]
        for e in range(experts)
    ]


def _mixing(width: int, generator: torch.Generator) -> Tensor:
    """Independent values [width] to channels [width]: variances fall like 1 / rank, and a few channels are outliers."""
    directions = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    spread = torch.arange(1, width + 1).float().rsqrt()[:, None] * directions
    sizes = torch.exp(0.5 * torch.randn(width, generator=generator))
    sizes[torch.randperm(width, generator=generator)[:OUTLIERS]] *= OUTLIER_SIZE
    mixed = spread * sizes
    return mixed / mixed.square().sum(0).mean().sqrt()


def _weight(checkpoint: Path, expert: int, matrix: str) -> Tensor:
    name = f"model.layers.0.block_sparse_moe.experts.{expert}.{matrix}.weight"
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    parts = []
    for part in (name, f"{name}_scale_inv"):
        with safe_open(checkpoint / index[part], framework="pt") as shard:
            parts.append(shard.get_tensor(part))
    return widen(*parts).contiguous()
