#!/usr/bin/env python3
"""Compares quantkit's INT4 checkpoints with llm-compressor's and with plain rounding: quality, solver, rounding speed.

    scripts/setup_llmcompressor
    scripts/bench_int4.py --part quality --json build/int4_quality.json
    scripts/make_synthetic.py build/one-layer --layers 1 --real-dims
    scripts/bench_int4.py build/one-layer --part solve --repeat 5
    scripts/bench_int4.py build/one-layer --part rtn --repeat 5

`quality`: the fixture model's experts in 4 bits, both sides calibrated on exactly the same tokens, each document by
itself; KL divergence to the FP8 model on held-out text, transformers' model in float32. llm-compressor gets the FP8
weights dequantized to float32, and its AWQ the patch that lets it run without an accelerator.
`solve`: GPTQ alone on some experts of one real layer, the same weights and Hessians on both sides; seconds are scaled
to the layer's experts. `rtn`: a whole checkpoint rounded, from process start to exit; peak memory is the kernel's.
Rounds alternate which side goes first; the figures are medians.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_gguf import Measured, machine, settle
from int4_peers.contests import (
    DEMANDS,
    OURS,
    PEER,
    ROUNDINGS,
    SIDES,
    THEIRS,
    run_peer,
    run_quantkit,
    run_side,
)

LENGTH, SAMPLES = 512, 128
LAYER_EXPERTS = 256


def quality(work: Path, threads: int) -> dict[str, Any]:
    """Every run of the contest, its divergence and its seconds, and the ratios that are asked for."""
    from int4_peers.quality import FIXTURE, CheckpointRuler, joined, write_float_checkpoint

    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # matrices of the fixture are too small for spinning threads
    tokens, source = work / "tokens.safetensors", work / "float32"
    size = ("--samples", str(SAMPLES), "--sequence-length", str(LENGTH))
    build = ("calibration", "build", "agentic", "--tokenizer", FIXTURE, "-o", tokens, *size)
    run_quantkit(threads, work / "tokens.log", *build)
    write_float_checkpoint(source)
    ruler, rows = CheckpointRuler(), {}

    def add(name: str, kinds: dict[str, Any], seconds: float | None) -> None:
        whole = joined(kinds.values()).as_json()
        rows[name] = whole | {"kinds": {kind: one.mean for kind, one in kinds.items()}, "seconds": seconds}
        print_divergence(name, rows[name])

    for name, rounding in ROUNDINGS.items():
        add(name, ruler.of_rounding(rounding.group_size, rounding.symmetric), None)
    for number, (name, theirs) in enumerate(THEIRS.items()):
        out = work / f"theirs-{number}"
        settings = theirs.settings
        _, seconds = run_peer(threads, out.with_suffix(".log"), "calibrated", source, tokens, out, settings=settings)
        add(name, ruler.of_checkpoint(out), seconds["quantize"])
    for number, (name, ours) in enumerate(OURS.items()):
        out = work / f"ours-{number}"
        options = ["--group-size", str(ours.group_size), *(("--tokens", tokens) if ours.calibrated else ())]
        command = [ours.command[0], FIXTURE, "-o", out, *ours.command[1:], *options]
        measured = run_quantkit(threads, out.with_suffix(".log"), *command)
        add(name, ruler.of_checkpoint(out), measured.wall)
    return {"positions": rows[name]["positions"], "divergence": rows, "ratios": ratios(rows)}


def ratios(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """What is demanded, and what was found."""
    means = {name: row["mean"] for name, row in rows.items()}
    for side, runs in (("quantkit", OURS), ("llm-compressor", THEIRS)):
        for size in {run.group_size for run in runs.values()}:
            best = min(means[name] for name, run in runs.items() if run.group_size == size and run.among_best)
            means[f"best of {side} g{size}"] = best
    return [
        {"ours": ours, "against": against, "limit": limit, "ratio": means[ours] / means[against]}
        for ours, against, limit in DEMANDS
    ]


def solve(checkpoint: Path, work: Path, threads: int, repeat: int, experts: int) -> dict[str, Any]:
    """Seconds of one layer's solutions on both sides, and the output errors tr(dW H dW^T) that they leave."""
    from int4_peers.solve_inputs import rounding_losses, write_inputs

    inputs = work / "inputs.safetensors"
    write_inputs(checkpoint, experts, inputs)
    settings = {"group_size": 128, "symmetric": True, "experts": experts, "threads": threads}

    def ours() -> Any:
        program: list[str | Path] = [sys.executable, SIDES / "quantkit_side.py"]
        return run_side(program, threads, work / "ours.log", inputs, settings=settings)[1]

    def theirs() -> Any:
        return run_peer(threads, work / "theirs.log", "solve", inputs, settings=settings)[1]

    found = alternate({"quantkit": ours, "llm-compressor": theirs}, repeat)
    scale = LAYER_EXPERTS / experts
    sides = {
        side: {
            "seconds_of_layer": scale * statistics.median(turn["seconds"] for turn in turns),
            "rounds": [scale * turn["seconds"] for turn in turns],
            **total_losses(turns[-1]["losses"]),
        }
        for side, turns in found.items()
    }
    sides["rounding"] = {"seconds_of_layer": None, **total_losses(rounding_losses(inputs, experts, 128))}
    print(f"\n{'one layer':16s} {'seconds':>9s} {'error w1+w3':>13s} {'error w2':>13s}")
    for side, row in sides.items():
        spent = "" if row["seconds_of_layer"] is None else f"{row['seconds_of_layer']:.1f}"
        print(f"{side:16s} {spent:>9s} {row['error_w1_w3']:13.5g} {row['error_w2']:13.5g}")
    return {"experts": experts, "sides": sides, "ratios": over(sides, ("seconds_of_layer", "error_w1_w3", "error_w2"))}


def total_losses(losses: list[list[float]]) -> dict[str, float]:
    return {"error_w1_w3": sum(pair[0] for pair in losses), "error_w2": sum(pair[1] for pair in losses)}


def rtn(checkpoint: Path, work: Path, threads: int, repeat: int) -> dict[str, Any]:
    """Wall seconds and peak memory of rounding a checkpoint to 4 bits, groups of 128, symmetric, compressed-tensors."""
    out = work / "out"

    def ours() -> Measured:
        options = ("--bits", "4", "--group-size", "128", "--symmetric", "--format", "compressed-tensors")
        settle(checkpoint)
        return run_quantkit(threads, work / "ours.log", "rtn", checkpoint, "-o", out, *options)

    def theirs() -> Measured:
        settings = {"group_size": 128, "symmetric": True, "workers": threads}
        settle(checkpoint)
        return run_peer(threads, work / "theirs.log", "model_free", checkpoint, out, settings=settings)[0]

    found = alternate({"quantkit": ours, "llm-compressor": theirs}, repeat, out)
    sides = {
        side: {
            "wall_seconds": statistics.median(turn.wall for turn in turns),
            "peak_rss_bytes": statistics.median(turn.peak_rss for turn in turns),
            "rounds": [[turn.wall, turn.peak_rss] for turn in turns],
        }
        for side, turns in found.items()
    }
    print(f"\n{'rounding':16s} {'seconds':>9s} {'peak GB':>9s}")
    for side, row in sides.items():
        print(f"{side:16s} {row['wall_seconds']:9.1f} {row['peak_rss_bytes'] / 1e9:9.2f}")
    return {"sides": sides, "ratios": over(sides, ("wall_seconds", "peak_rss_bytes"))}


def alternate(sides: dict[str, Any], repeat: int, out: Path | None = None) -> dict[str, list[Any]]:
    """Call both sides `repeat` times, the first one changing from round to round; `out` is deleted after each turn."""
    found: dict[str, list[Any]] = {side: [] for side in sides}
    for number in range(repeat):
        for side in list(sides) if number % 2 == 0 else reversed(sides):
            found[side].append(sides[side]())
            print(f"{number + 1:3d}  {side:16s} {found[side][-1]}", flush=True)
            if out is not None:
                shutil.rmtree(out)
    return found


def over(sides: dict[str, Any], keys: tuple[str, ...]) -> dict[str, float]:
    return {key: sides["quantkit"][key] / sides["llm-compressor"][key] for key in keys}


def print_divergence(name: str, row: dict[str, Any]) -> None:
    spent = "" if row["seconds"] is None else f"{row['seconds']:.1f} s"
    kinds = "  ".join(f"{kind} {mean:.6f}" for kind, mean in row["kinds"].items())
    print(
        f"{name:36s} {row['mean']:.6f} +- {row['standard_error']:.6f}  median {row['median']:.2e}  {kinds}  {spent}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="FP8 checkpoint of real size, for solve and rtn")
    parser.add_argument("--part", choices=("quality", "solve", "rtn"), required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--experts", type=int, default=8, help="sample of the layer's experts for solve")
    parser.add_argument("--work", type=Path, help="folder with room for the outputs (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    if not PEER.exists():
        sys.exit(f"{PEER} does not exist; run scripts/setup_llmcompressor first")
    if arguments.part != "quality" and arguments.checkpoint is None:
        parser.error(f"--part {arguments.part} needs a checkpoint; scripts/make_synthetic.py makes one")
    about = machine()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        work, threads = Path(folder), arguments.threads
        if arguments.part == "quality":
            found = quality(work, threads)
        elif arguments.part == "solve":
            found = solve(arguments.checkpoint, work, threads, arguments.repeat, arguments.experts)
        else:
            found = rtn(arguments.checkpoint.resolve(), work, threads, arguments.repeat)
    print(f"\nratios: {json.dumps(found['ratios'], indent=1)}")
    if arguments.json:
        report = {"part": arguments.part, "threads": arguments.threads, "machine": about, **found}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
