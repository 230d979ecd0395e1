#!/usr/bin/env python3
"""Times the solver of `quantkit gguf --compensate` on experts of real size against GPTQ INT4's, type by type.

    scripts/make_synthetic.py build/experts --layers 1 --real-dims --experts 4 --used 2
    scripts/bench_solver.py build/experts --repeat 5 --json build/bench_solver.json

Both solve the same weights of layer 0 on the same made-up activations, w1 and w3 on one Hessian and w2 on another, the
way a calibrated pass does: an expert per thread, single-threaded matrix products, and a C library that keeps freed
buffers. Factorization, the weights that flow on and the output errors for the report are included, and for blocks their
packing; reading, statistics and writing are not. In every round each type has a turn of GPTQ INT4 (4 bits, groups of
128, symmetric) right beside it, and from round to round the other one of the two goes first. Figures are medians:
seconds are one expert's share of the wall time, ratios are taken within a round. On a machine that has other work too,
the ratios of processor time are the steadier ones. Peak memory is the kernel's, of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bench_gguf import machine
from int4_peers.solve_inputs import write_inputs
from safetensors.torch import load_file
from torch import Tensor

from quantkit.forward.streamed import keep_freed_memory, single_threaded_torch
from quantkit.quantize.compensate import COMPENSATED_TYPES, compare_losses, factorize, solve_blocks
from quantkit.quantize.gptq import solve
from quantkit.quantize.integers import IntegerGrid
from quantkit.quantize.rows import prepare

BOUND = 1.5  # what a solution in blocks may take, over GPTQ INT4's
INT4 = IntegerGrid(4, 128, symmetric=True)
Solve = Callable[[list[Tensor], Tensor], None]


@dataclass(frozen=True)
class Job:
    """Matrices float32 [N, K] that the same rows enter, and the mean of their x x^T, float32 [K, K]."""

    matrices: list[Tensor]
    hessian: Tensor


@dataclass(frozen=True)
class Turn:
    """Seconds per expert: by the clock, with all threads at work, and of processors, summed over threads."""

    wall: float
    processor: float


@dataclass(frozen=True)
class Pair:
    """One round of a type, and the turn of GPTQ INT4 beside it."""

    blocks: Turn
    int4: Turn

    @property
    def wall_ratio(self) -> float:
        return self.blocks.wall / self.int4.wall

    @property
    def processor_ratio(self) -> float:
        return self.blocks.processor / self.int4.processor


def solve_int4(matrices: list[Tensor], hessian: Tensor) -> None:
    """GPTQ INT4 of matrices with one Hessian, stacked as `quantkit gptq` does it."""
    solution = solve(torch.cat(matrices), hessian, INT4)
    assert solution is not None
    solution.quantized.dequantized()


def solver_of(type_name: str) -> Solve:
    """Compensated blocks of matrices with one Hessian, one after the other as `quantkit gguf` does it."""

    def run(matrices: list[Tensor], hessian: Tensor) -> None:
        found = factorize(hessian)
        assert found is not None
        for weights in matrices:
            solution = solve_blocks(weights, hessian, found, type_name)
            compare_losses(weights, hessian, type_name, solution.values)

    return run


def read_experts(checkpoint: Path, experts: int) -> list[list[Job]]:
    """The solver's inputs for some experts of layer 0: w1 and w3, and w2."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.safetensors"
        write_inputs(checkpoint, experts, path)
        held = load_file(path)
    return [
        [
            Job([held[f"{expert}.w1"], held[f"{expert}.w3"]], held[f"{expert}.entering"]),
            Job([held[f"{expert}.w2"]], held[f"{expert}.middle"]),
        ]
        for expert in range(experts)
    ]


def turn(solver: Solve, experts: list[list[Job]], pool: ThreadPoolExecutor) -> Turn:
    """Solve all experts, an expert per thread of the pool."""

    def work(jobs: list[Job]) -> None:
        for job in jobs:
            solver(job.matrices, job.hessian)

    wall, processor = time.perf_counter(), time.process_time()
    list(pool.map(work, experts))
    return Turn((time.perf_counter() - wall) / len(experts), (time.process_time() - processor) / len(experts))


def compile_loops(solvers: dict[str, Solve]) -> None:
    """Solve a small matrix, so that no turn pays for compiling or for ggml's tables."""
    prepare(set(solvers))
    for solver in (solve_int4, *solvers.values()):
        solver([torch.randn(64, 256)], torch.eye(256))


def contest(experts: list[list[Job]], types: list[str], threads: int, repeat: int) -> Iterator[tuple[str, Pair]]:
    """Yield every type's turns, round after round."""
    solvers = {type_name: solver_of(type_name) for type_name in types}
    keep_freed_memory()
    with single_threaded_torch(), ThreadPoolExecutor(threads) as pool:
        compile_loops(solvers)
        for number in range(repeat):
            for type_name, solver in solvers.items():
                sides = {"blocks": solver, "int4": solve_int4}
                order = list(sides) if number % 2 == 0 else list(reversed(sides))
                yield type_name, Pair(**{side: turn(sides[side], experts, pool) for side in order})


def summary(pairs: list[Pair]) -> dict[str, Any]:
    """Medians of some rounds, and the rounds."""
    ratios = [pair.wall_ratio for pair in pairs]
    return {
        "seconds": statistics.median(pair.blocks.wall for pair in pairs),
        "int4_seconds": statistics.median(pair.int4.wall for pair in pairs),
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "processor_ratio": statistics.median(pair.processor_ratio for pair in pairs),
        "rounds": [asdict(pair) for pair in pairs],
    }


def print_table(found: dict[str, dict[str, Any]]) -> None:
    print(f"\n{'one expert':10s} {'seconds':>8s} {'int4':>8s} {'ratio':>6s}  {'range':12s} {'processor':>9s}")
    for type_name, row in found.items():
        low, high = row["range"]
        print(
            f"{type_name:10s} {row['seconds']:8.3f} {row['int4_seconds']:8.3f} {row['ratio']:6.2f}  "
            f"{low:.2f} to {high:.2f} {row['processor_ratio']:9.2f}"
            + ("" if row["ratio"] <= BOUND else f"  above {BOUND}")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="FP8 checkpoint of real size")
    parser.add_argument("--types", default=",".join(sorted(COMPENSATED_TYPES)), help="with commas between them")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--experts", type=int, default=4, help="so many experts are solved in every turn")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    types = arguments.types.upper().split(",")
    if unknown := sorted(set(types) - COMPENSATED_TYPES):
        parser.error(f"--types: {unknown[0]} is not compensated; choose from {', '.join(sorted(COMPENSATED_TYPES))}")
    about, load = machine(), os.getloadavg()[0]
    rounds: dict[str, list[Pair]] = {type_name: [] for type_name in types}
    experts = read_experts(arguments.checkpoint, arguments.experts)
    for type_name, pair in contest(experts, types, arguments.threads, arguments.repeat):
        rounds[type_name].append(pair)
        number = len(rounds[type_name])
        both = f"{pair.blocks.wall:7.3f} s  int4 {pair.int4.wall:7.3f} s"
        print(f"{number:3d}  {type_name:7s} {both}  of processors {pair.processor_ratio:.2f}", flush=True)
    found = {type_name: summary(pairs) for type_name, pairs in rounds.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print_table(found)
    print(f"\npeak {peak / 2**30:.2f} GiB; load before {load:.1f}")
    if arguments.json:
        run = {"threads": arguments.threads, "experts": arguments.experts, "load_before": load, "machine": about}
        report = run | {"peak_rss_bytes": peak, "types": found}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
