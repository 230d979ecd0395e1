#!/usr/bin/env python3
"""Times the k-quant kernels against ggml_quantize_chunk on one core, and compares their errors.

    scripts/bench_kquants.py --repeat 5 --json build/bench_kquants.json

Speed: one expert matrix of M2.7's size, on one thread, with importance weights of its columns and without. In every
round each side has one turn, and from round to round the other one goes first; figures are medians of the ratios within
a round, of processor time. ggml gets float32 (whoever calls it has to make that first); ours is timed on float32 and
straight on FP8 codes with block scales, which is how a conversion meets it.

Error: sum of importance * (weight - what ggml's dequantizer returns)^2 over that of ggml's own blocks, by matrix, on
Gaussian weights, on heavy-tailed ones (Student's t of 3 degrees of freedom), and on the matrices of a trained model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from bench_gguf import machine

from quantkit.arrays import Bytes, Float32
from quantkit.checkpoint.index import open_checkpoint
from quantkit.checkpoint.reader import Reader
from quantkit.model.tensors import build_model
from quantkit.quantize import ggml
from quantkit.quantize.kquants.quantize import TYPES, quantize
from quantkit.quantize.kquants.rows import Rows

TRAINED = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "tiny-m2"
ROWS, COLUMNS, FEW = 1536, 3072, 256
BLOCK = 128
# How many times ggml's speed is asked for, with importance weights; without: UNWEIGHTED of each of these types.
WEIGHTED = {"Q4_K": 5, "Q5_K": 5, "Q6_K": 3, "IQ4_XS": 8, "IQ4_NL": 8, "Q2_K": 3, "Q3_K": 3}
UNWEIGHTED = 3
MOST_ERROR = 1.0


@dataclass(frozen=True)
class Matrix:
    """Weights float32 [N, K] and the importance [K] of their columns."""

    weights: Float32
    importance: Float32


def importance_like_inputs(columns: int, numbers: np.random.Generator) -> Float32:
    """Mean squares as an importance matrix has them: a few columns count for much more than most."""
    return np.exp(2 * numbers.standard_normal(columns)).astype(np.float32)


def made_up(numbers: np.random.Generator, rows: int = FEW) -> dict[str, Matrix]:
    """Gaussian and heavy-tailed weights of the size that trained ones have."""
    gaussian = numbers.standard_normal((rows, COLUMNS)) * 0.02
    heavy = numbers.standard_t(3, (rows, COLUMNS)) * 0.01
    return {
        name: Matrix(values.astype(np.float32), importance_like_inputs(COLUMNS, numbers))
        for name, values in (("Gaussian", gaussian), ("heavy-tailed", heavy))
    }


def trained(numbers: np.random.Generator, most: int) -> Iterator[Matrix]:
    """Some of the matrices of the trained fixture, spread over the model."""
    checkpoint = open_checkpoint(TRAINED)
    model = build_model(checkpoint)
    sources = [
        pair
        for tensor in model.tensors
        if len(tensor.source_shape) == 2 and tensor.source_shape[1] % 256 == 0
        for pair in zip(tensor.sources, tensor.scales, strict=True)
    ]
    with Reader(checkpoint, model.block) as reader:
        for source, scale in sources[:: max(1, len(sources) // most)]:
            weights = reader.read_rows(source, scale)
            yield Matrix(weights, importance_like_inputs(weights.shape[1], numbers))


def squared_error(matrix: Matrix, packed: Bytes, type_name: str, weighted: bool) -> float:
    """Sum of importance * (weight - dequantized)^2; of the plain squares if not `weighted`."""
    values = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[type_name])
    importance = matrix.importance if weighted else np.ones_like(matrix.importance)
    return float((np.square(values.astype(np.float64) - matrix.weights) * importance).sum())


def error_ratio(matrix: Matrix, type_name: str, weighted: bool) -> float:
    """Our error over ggml's."""
    importance = matrix.importance if weighted else None
    ours = quantize(Rows(values=matrix.weights), type_name, importance)
    theirs = ggml.quantize(matrix.weights, type_name, importance)
    return squared_error(matrix, ours, type_name, weighted) / squared_error(matrix, theirs, type_name, weighted)


def fp8_rows(matrix: Matrix) -> Rows:
    """The weights in FP8 with a scale per block, as the official checkpoint stores them."""
    rows, columns = matrix.weights.shape
    blocks = matrix.weights.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scale = (np.abs(blocks).max((1, 3)) / 448).astype(np.float32)
    scaled = torch.from_numpy((blocks / scale[:, None, :, None]).reshape(rows, columns))
    return Rows(codes=scaled.to(torch.float8_e4m3fn).view(torch.uint8).numpy(), scale=scale, block=(BLOCK, BLOCK))


def processor_seconds(turn: Callable[[], object]) -> float:
    begun = time.thread_time()
    turn()
    return time.thread_time() - begun


def contest(matrix: Matrix, type_name: str, weighted: bool, repeat: int) -> dict[str, Any]:
    """Million weights per second of ggml and of ours, and how many times as fast ours is."""
    importance = matrix.importance if weighted else None
    dense, stored = Rows(values=matrix.weights), fp8_rows(matrix)
    part = Matrix(matrix.weights[:FEW], matrix.importance)  # ggml is slow, and its speed does not depend on the rows
    sides: dict[str, tuple[int, Callable[[], object]]] = {
        "ggml": (part.weights.size, lambda: ggml.quantize(part.weights, type_name, importance)),
        "float32": (matrix.weights.size, lambda: quantize(dense, type_name, importance)),
        "fp8": (matrix.weights.size, lambda: quantize(stored, type_name, importance)),
    }
    for _, turn in sides.values():
        turn()  # compiles loops, builds tables
    rounds: list[dict[str, float]] = []
    for number in range(repeat):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        rounds.append({side: sides[side][0] / processor_seconds(sides[side][1]) / 1e6 for side in order})
    return {
        **{side: statistics.median(turn[side] for turn in rounds) for side in sides},
        "ratio": statistics.median(turn["float32"] / turn["ggml"] for turn in rounds),
        "fp8_ratio": statistics.median(turn["fp8"] / turn["ggml"] for turn in rounds),
        "rounds": rounds,
    }


def errors(type_name: str, weighted: bool, matrices: dict[str, list[Matrix]]) -> dict[str, dict[str, float]]:
    """Median and largest error over ggml's, by kind of weights."""
    found = {}
    for kind, some in matrices.items():
        ratios = [error_ratio(matrix, type_name, weighted) for matrix in some]
        found[kind] = {"median": statistics.median(ratios), "largest": max(ratios)}
    return found


def print_row(type_name: str, weighted: bool, row: dict[str, Any]) -> None:
    asked = WEIGHTED.get(type_name, 0) if weighted else UNWEIGHTED * (type_name in WEIGHTED)
    largest = {kind: found["largest"] for kind, found in row["errors"].items()}
    short = ["slow"] * (row["ratio"] < asked) + ["error"] * (max(largest.values()) > MOST_ERROR)
    print(
        f"{type_name:7s} {'yes' if weighted else 'no':4s} {row['ggml']:7.1f} {row['float32']:8.1f} {row['fp8']:7.1f} "
        f"{row['ratio']:7.2f} {row['fp8_ratio']:6.2f} {asked or '':>5}   "
        + "  ".join(f"{found:.4f}" for found in largest.values())
        + (f"   {', '.join(short)}" if short else ""),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default=",".join(sorted(TYPES)), help="with commas between them")
    parser.add_argument("--matrices", type=int, default=12, help="so many of the trained model's")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    types = arguments.types.upper().split(",")
    if unknown := sorted(set(types) - TYPES):
        parser.error(f"--types: no kernel for {unknown[0]}; choose from {', '.join(sorted(TYPES))}")
    about, numbers = machine(), np.random.default_rng(7)
    timed = made_up(numbers, ROWS)["Gaussian"]
    matrices = {kind: [matrix] for kind, matrix in made_up(numbers).items()}
    matrices["trained"] = list(trained(numbers, arguments.matrices))
    print(f"{about['processor']}; million weights per second of one core, and largest error over ggml's")
    print(f"type    imp.    ggml  float32     fp8   ratio    fp8 asked   {'  '.join(matrices)}")
    found: dict[str, dict[str, Any]] = {}
    for type_name in types:
        for weighted in (True, False):
            row = contest(timed, type_name, weighted, arguments.repeat)
            row["errors"] = errors(type_name, weighted, matrices)
            found.setdefault(type_name, {})["weighted" if weighted else "unweighted"] = row
            print_row(type_name, weighted, row)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": about, "types": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
