#!/usr/bin/env python3
"""Time the streamed importance matrix of one layer of M2.7's real size against its bare matrix products.

    scripts/make_synthetic.py build/one-layer --layers 1 --real-dims
    scripts/bench_calibration.py build/one-layer --samples 64 --length 512 --repeat 5

In every round: the rate of a bfloat16 product [1024, 3072] x [3072, 3072], one per thread as the pass does it, and with
torch's own threads, whichever is faster; then the whole `quantkit imatrix` (reading, dequantization, attention,
routing, experts, statistics, files), without starting Python. The floor is operations / rate of the products that the
routed tokens need: those of the experts alone, and with the attention matrices.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantkit.calibration.tokens import TokenSet
from quantkit.checkpoint.index import open_checkpoint
from quantkit.model.config import hparams_from_config
from quantkit.model.spec import HParams
from quantkit.run.imatrix import make_imatrix
from quantkit.run.sizes import available_threads

ROWS, WIDTH = 1024, 3072
PRODUCTS = 40


def product_rate() -> float:
    """Measured operations (2 per multiply-add) per second of bfloat16 products."""
    threads = available_threads()
    return max(_rate_of_threads(threads, 1), _rate_of_threads(1, threads))


def _rate_of_threads(workers: int, torch_threads: int) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(torch_threads)

    def run(left: torch.Tensor, right: torch.Tensor, count: int) -> None:
        for _ in range(count):
            torch.nn.functional.linear(left, right)

    pairs = [(torch.randn(ROWS, WIDTH).bfloat16(), torch.randn(WIDTH, WIDTH).bfloat16()) for _ in range(workers)]
    for pair in pairs:
        run(*pair, 3)
    pool = [threading.Thread(target=run, args=(*pair, PRODUCTS)) for pair in pairs]
    started = time.perf_counter()
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    seconds = time.perf_counter() - started
    torch.set_num_threads(before)
    return workers * PRODUCTS * 2 * ROWS * WIDTH * WIDTH / seconds


def operations(hparams: HParams, tokens: int) -> tuple[int, int]:
    """Operations per layer for `tokens`: of the routed experts, and of the attention matrices."""
    experts = 2 * tokens * hparams.n_experts_used * 3 * hparams.hidden * hparams.expert_width
    heads = (2 * hparams.n_heads + 2 * hparams.n_kv_heads) * hparams.head_dim
    return experts, 2 * tokens * hparams.hidden * heads


def one_round(source: Path, hparams: HParams, tokens: TokenSet) -> dict[str, Any]:
    rate = product_rate()
    experts, attention = (count * hparams.n_layers / rate for count in operations(hparams, len(tokens.ids)))
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        result = make_imatrix(source, Path(folder) / "imatrix.gguf", tokens, precision="bfloat16", quiet=True)
    return {
        "rate_tflops": rate / 1e12,
        "expert_products_s": experts,
        "all_products_s": experts + attention,
        "imatrix_s": result.seconds,
        "ratio_expert_products": result.seconds / experts,
        "ratio_all_products": result.seconds / (experts + attention),
        "peak_rss_bytes": result.peak_rss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    hparams = hparams_from_config(open_checkpoint(arguments.source).config, arguments.source / "config.json")
    count = arguments.samples * arguments.length
    ids = np.random.default_rng(0).integers(0, hparams.vocab, count).astype(np.int32)
    tokens = TokenSet(ids, np.arange(0, count + 1, arguments.length), arguments.length, {"corpus": "random"})
    rounds = []
    one_round(arguments.source, hparams, tokens)  # compiles the loops, fills the system's cache
    for number in range(arguments.repeat):
        rounds.append(one_round(arguments.source, hparams, tokens))
        print(number + 1, {key: round(value, 3) for key, value in rounds[-1].items()}, flush=True)
    medians = {key: statistics.median(row[key] for row in rounds) for key in rounds[0]}
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": available_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps({"tokens": count, "machine": machine, "median": medians}, indent=1))


if __name__ == "__main__":
    main()
