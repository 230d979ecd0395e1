#!/usr/bin/env python3
"""Times FP8 dequantization, and the reading of a checkpoint, against what memory and disk can do.

    scripts/make_synthetic.py build/one-layer --layers 1 --real-dims
    scripts/bench_reading.py build/one-layer --repeat 5 --json build/bench_reading.json

Dequantization: e4m3 codes of one expert matrix of M2.7's size with their block scales to float32, on one thread, on
codes that were used before and into fresh memory as a caller gets it. The floor beside it is numpy's copy of the same
codes to float32 memory four times as large: what writing alone costs. torch's own conversion of float8_e4m3fn, times
the scales, is the peer. Reading: whole expert matrices through the reader, from the system's cache, by one thread and
by all; and what `readinto` of the same bytes takes. Rates are in GB/s of FP8 bytes, medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from bench_gguf import machine, settle

from quantkit.checkpoint.dequant import dequantize_fp8_blocks
from quantkit.checkpoint.index import Checkpoint, open_checkpoint
from quantkit.checkpoint.reader import FP8, Reader

ROWS, COLUMNS, BLOCK = 1536, 3072, 128
ASKED = 1.5  # GB/s per core
MATRICES = 96  # are read in a round


def rate(turn: Callable[[], object], nbytes: int) -> float:
    begun = time.perf_counter()
    turn()
    return nbytes / (time.perf_counter() - begun) / 1e9


def dequantizing(numbers: np.random.Generator) -> dict[str, tuple[int, Callable[[], object]]]:
    """Every contestant's turn, and the bytes of FP8 in it."""
    codes = numbers.integers(0, 0x7E, (ROWS, COLUMNS), np.uint8)
    scale = numbers.random((ROWS // BLOCK, COLUMNS // BLOCK), np.float32) + np.float32(0.1)
    stored, factors = torch.from_numpy(codes).view(torch.float8_e4m3fn), torch.from_numpy(scale)
    target = np.empty((ROWS, COLUMNS), np.float32)

    def with_torch() -> None:
        wide = stored.float().view(ROWS // BLOCK, BLOCK, COLUMNS // BLOCK, BLOCK)
        wide *= factors[:, None, :, None]

    return {
        "quantkit": (codes.size, lambda: dequantize_fp8_blocks(codes, scale, (BLOCK, BLOCK))),
        "torch": (codes.size, with_torch),
        "numpy copy to float32": (codes.size, lambda: np.copyto(target, codes, casting="unsafe")),
    }


def reading(checkpoint: Checkpoint, threads: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Reading the same matrices as they are stored, by one thread, and dequantized, by one and by all."""
    entries = [entry for entry in checkpoint.tensors.values() if entry.dtype == FP8][:MATRICES]
    nbytes = sum(entry.nbytes for entry in entries)

    def plainly() -> None:
        buffer = bytearray(max(entry.nbytes for entry in entries))
        for entry in entries:
            with entry.path.open("rb", buffering=0) as file:
                file.seek(entry.offset)
                file.readinto(memoryview(buffer)[: entry.nbytes])

    def through_reader(workers: int) -> None:
        with Reader(checkpoint, (BLOCK, BLOCK)) as reader, ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda entry: reader.read_rows(entry.name, f"{entry.name}_scale_inv") is None, entries))

    return {
        "readinto": (nbytes, plainly),
        "read_rows, 1 thread": (nbytes, lambda: through_reader(1)),
        f"read_rows, {threads} threads": (nbytes, lambda: through_reader(threads)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="FP8 checkpoint of real size")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = machine()
    settle(arguments.checkpoint)
    turns = dequantizing(np.random.default_rng(7)) | reading(open_checkpoint(arguments.checkpoint), arguments.threads)
    rounds: list[dict[str, float]] = []
    for _, turn in turns.values():
        turn()
    for number in range(arguments.repeat):
        order = list(turns) if number % 2 == 0 else list(reversed(turns))
        rounds.append({side: rate(turns[side][1], turns[side][0]) for side in order})
    medians = {side: statistics.median(row[side] for row in rounds) for side in turns}
    print(f"{about['processor']}; GB/s of FP8 bytes, medians of {arguments.repeat}")
    for side, found in medians.items():
        print(f"{side:26s} {found:6.2f}" + (f"   asked: {ASKED}" if side == "quantkit" else ""))
    if arguments.json:
        report = {"machine": about, "median": medians, "rounds": rounds}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
