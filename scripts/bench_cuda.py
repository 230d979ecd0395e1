#!/usr/bin/env python3
"""Times k-quants and GPTQ on a card, each beside what the machine cannot do faster.

    scripts/make_synthetic.py build/one-layer --layers 1 --real-dims
    scripts/bench_cuda.py build/one-layer --repeat 5 --json build/bench_cuda.json

Kernels: expert matrices of the checkpoint, from FP8 codes and block scales in the card's memory to packed blocks there,
with importance weights and without, by the card's own clock. Conversion: `quantkit gguf q4_k_m --device cuda` from
start to exit, with the checkpoint in the page cache, beside the seconds that reading the checkpoint takes by itself,
and moving its bytes to the card and the output's back. GPTQ: a whole run of `quantkit gptq` on random tokens, forward
pass, solver and files included. All figures are medians.

Without a card it says so and ends with exit code 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_gguf import READ_SIZE, ROOT, machine, settle

# Matrices that take turns, so that no run finds its weights in the card's cache.
MATRICES = 16
MIX = "q4_k_m"


def median(repeat: int, turn: Callable[[], float]) -> float:
    """The middle one of `repeat` turns' seconds, after one that is not counted."""
    turn()
    return statistics.median(turn() for _ in range(repeat))


def on_card(work: Callable[[], object]) -> float:
    """Seconds that `work` takes on the card, from the first thing handed to it to the last one done."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def by_clock(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def expert_matrices(checkpoint: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Codes and block scales of some expert matrices, in the card's memory."""
    from quantkit.checkpoint.index import open_checkpoint
    from quantkit.checkpoint.reader import Reader
    from quantkit.model.tensors import build_model

    found = open_checkpoint(checkpoint)
    model = build_model(found)
    stacked = [tensor for tensor in model.tensors if tensor.matrices > 1]
    names = [pair for tensor in stacked for pair in zip(tensor.sources, tensor.scales, strict=True)]
    matrices = []
    with Reader(found, model.block) as reader:
        for name, scale in names[:: max(1, len(names) // MATRICES)][:MATRICES]:
            entry = found.tensors[name]
            assert scale is not None
            codes, scales = reader.read_fp8(name, scale, (0, entry.shape[0]))
            matrices.append((torch.tensor(codes, device="cuda"), torch.tensor(scales, device="cuda")))
    return matrices


def bench_kernels(checkpoint: Path, repeat: int) -> dict[str, Any]:
    """Billion weights per second by type, from FP8 in the card's memory to blocks in the card's memory."""
    from quantkit.quantize.kquants.cuda.quantize import TYPES, quantize
    from quantkit.quantize.kquants.cuda.turned import turn_fp8

    matrices = expert_matrices(checkpoint)
    weights = sum(codes.numel() for codes, _ in matrices)
    importance = {codes.shape[1]: torch.exp(2 * torch.randn(codes.shape[1], device="cuda")) for codes, _ in matrices}

    def all_of(type_name: str, weighted: bool) -> None:
        for codes, scale in matrices:
            turned = turn_fp8(codes, scale, (128, 128), 0)
            quantize(turned, type_name, importance[codes.shape[1]] if weighted else None)

    rates: dict[str, Any] = {}
    for type_name in sorted(TYPES):
        seconds = {
            key: median(repeat, lambda w=weighted, t=type_name: on_card(lambda: all_of(t, w)))
            for key, weighted in (("with_importance", True), ("without", False))
        }
        rates[type_name] = {key: weights / 1e9 / value for key, value in seconds.items()}
        print(
            f"{type_name:7s} {rates[type_name]['with_importance']:8.2f} Gweights/s with importance, "
            f"{rates[type_name]['without']:8.2f} without",
            flush=True,
        )
    return {"weights": weights, "gweights_per_second": rates}


def convert(checkpoint: Path, out: Path) -> None:
    command = [sys.executable, "-m", "quantkit", "gguf", MIX, str(checkpoint), "-o", str(out)]
    subprocess.run([*command, "--device", "cuda", "--force", "--json"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def read_all(checkpoint: Path) -> int:
    """Read the checkpoint's files once; return their bytes."""
    total, buffer = 0, bytearray(READ_SIZE)
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(buffer):
                total += got
    return total


def move(nbytes: int, to_card: bool) -> float:
    """Seconds that so many bytes take between pinned memory and the card's, one way."""
    pinned = torch.empty(READ_SIZE, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(READ_SIZE, dtype=torch.uint8, device="cuda")
    source, target = (pinned, there) if to_card else (there, pinned)

    def work() -> None:
        for _ in range(-(-nbytes // READ_SIZE)):
            target.copy_(source, non_blocking=True)

    return on_card(work)


def bench_conversion(checkpoint: Path, repeat: int, work: Path | None) -> dict[str, Any]:
    """Seconds of a whole conversion, and of what it cannot do without."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        out = Path(folder) / "out.gguf"

        def turn() -> float:
            settle(checkpoint)
            return by_clock(lambda: convert(checkpoint, out))

        wall = median(repeat, turn)
        written = sum(path.stat().st_size for path in Path(folder).glob("*.gguf"))
    read = read_all(checkpoint)
    floors = {
        "reading": median(repeat, lambda: by_clock(lambda: read_all(checkpoint))),
        "to_card": median(repeat, lambda: move(read, True)),
        "from_card": median(repeat, lambda: move(written, False)),
    }
    print(f"{MIX}: {wall:.2f} s; floors: " + ", ".join(f"{name} {value:.2f} s" for name, value in floors.items()))
    return {"seconds": wall, "source_bytes": read, "output_bytes": written, "floor_seconds": floors}


def bench_gptq(checkpoint: Path, repeat: int, work: Path | None, samples: int, length: int) -> dict[str, Any]:
    """Seconds of GPTQ INT4 for all layers of the checkpoint, reading and writing included."""
    from quantkit.calibration.tokens import TokenSet
    from quantkit.checkpoint.index import open_checkpoint
    from quantkit.model.config import hparams_from_config
    from quantkit.run.int4.quantize import quantize_int4
    from quantkit.run.int4.settings import Method, choose_settings

    hparams = hparams_from_config(open_checkpoint(checkpoint).config, checkpoint / "config.json")
    count = samples * length
    ids = np.random.default_rng(0).integers(0, hparams.vocab, count).astype(np.int32)
    tokens = TokenSet(ids, np.arange(0, count + 1, length), length, {"corpus": "random"})

    def turn() -> float:
        settle(checkpoint)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            settings = choose_settings(Method.GPTQ)
            return quantize_int4(
                checkpoint, Path(folder) / "out", settings, tokens, device="cuda", precision="bfloat16", quiet=True
            ).seconds

    seconds = median(repeat, turn)
    print(f"gptq: {seconds:.1f} s for {hparams.n_layers} layers with {samples} x {length} tokens", flush=True)
    return {"seconds": seconds, "layers": hparams.n_layers, "samples": samples, "length": length}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--samples", type=int, default=512, help="sequences for GPTQ")
    parser.add_argument("--length", type=int, default=2048, help="tokens of each")
    parser.add_argument("--work", type=Path, help="folder with room for the output (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_cuda.py: torch finds no CUDA device here, and nothing is measured", file=sys.stderr)
        sys.exit(2)
    card = torch.cuda.get_device_name()
    print(f"{card}, {arguments.checkpoint.name}", flush=True)
    report = {
        "card": card,
        "torch": torch.__version__,
        "machine": machine(),
        "kernels": bench_kernels(arguments.checkpoint, arguments.repeat),
        "conversion": bench_conversion(arguments.checkpoint.resolve(), arguments.repeat, arguments.work),
        "gptq": bench_gptq(arguments.checkpoint, arguments.repeat, arguments.work, arguments.samples, arguments.length),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
