#!/usr/bin/env python3
"""Times `quantkit gguf` from the Hub to the Hub against the same conversion on the local disk.

    scripts/make_synthetic.py build/hub/MiniMax-M2.7 --layers 1 --real-dims --experts 32 --used 2 --shard-size 60000000
    scripts/bench_hub.py build/hub/MiniMax-M2.7 --repeat 5 --json build/bench_hub.json

The Hub is the stand-in of the tests, on loopback and on the same processors: what it needs of them counts against the
Hub's side. Rounds alternate which side goes first. Wall time is that of the process from start to exit, imports
included; processor time is that of the process alone. The Hub's side downloads every shard, checks it, converts, checks
and uploads every part and commits, with a disk of `--cache-size` and two parts.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from hub_standin.processes import TestHub, make_hub  # noqa: E402
from hub_standin.server import serve  # noqa: E402

LOCAL, HUB = "local", "hub"


def measure(command: Sequence[object], environment: dict[str, str], folder: Path) -> tuple[float, float]:
    """Run a command in `folder` to its end; return its wall and processor seconds."""
    with (folder / "log").open("wb") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit((folder / "log").read_text()[-2000:])
    return wall, usage.ru_utime + usage.ru_stime


def turn(side: str, checkpoint: Path, options: argparse.Namespace, hub: TestHub, number: int) -> tuple[float, float]:
    """One conversion of one side, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-hub-", dir=options.folder) as scratch:
        command: list[object] = [sys.executable, "-m", "quantkit", "gguf", options.type]
        if side == LOCAL:
            command += [checkpoint, "-o", Path(scratch) / "out.gguf"]
        else:
            command += [f"hub:MiniMaxAI/{checkpoint.name}", "--push", f"me/round-{number}"]
            command += ["--cache-size", options.cache_size]
        return measure([*command, "--split-max-size", options.split], hub.environment(), Path(scratch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--type", default="q4_k_m")
    parser.add_argument("--split", default="100M", help="largest part of the output")
    parser.add_argument("--cache-size", default="300M", help="disk for shards of the Hub's side")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=ROOT / "build", help="where outputs are for a while")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    checkpoint = options.checkpoint.resolve()
    options.folder.mkdir(exist_ok=True)
    figures: dict[str, list[tuple[float, float]]] = {LOCAL: [], HUB: []}
    with tempfile.TemporaryDirectory(prefix="bench-hub-", dir=options.folder) as scratch:
        source = Path(shutil.copytree(checkpoint, Path(scratch) / "source" / checkpoint.name))
        if not (source / "LICENSE").exists():  # nothing is published without one
            shutil.copyfile(ROOT / "tests" / "fixtures" / "tiny-m2" / "LICENSE", source / "LICENSE")
        with serve(make_hub(Path(scratch) / "hub", xet=False)) as hub:
            hub.multipart_over = hub.chunk_size = 1 << 26  # as coarse as the real one's
            hub.add_repo(f"MiniMaxAI/{source.name}", source)
            for number in range(options.repeat):
                for side in (LOCAL, HUB) if number % 2 else (HUB, LOCAL):
                    figures[side].append(turn(side, source, options, hub, number))
                    wall, processor = figures[side][-1]
                    print(f"{number + 1:3}  {side:<6}{wall:8.2f} s  of processors {processor:7.2f} s", flush=True)
    report(figures, checkpoint, options)


def report(figures: dict[str, list[tuple[float, float]]], checkpoint: Path, options: argparse.Namespace) -> None:
    """Print medians and their ratios; write them where asked."""
    medians = {side: [statistics.median(values) for values in zip(*rounds)] for side, rounds in figures.items()}
    wall, processor = (medians[HUB][place] / medians[LOCAL][place] for place in (0, 1))
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    print(f"\n{options.type} of {size / 1e6:.0f} MB, medians of {options.repeat}, parts of {options.split}")
    seconds = f"local {medians[LOCAL][0]:.2f} s, Hub to Hub {medians[HUB][0]:.2f} s"
    print(f"{seconds}: {wall:.3f} x (of processors {processor:.3f})")
    if options.json is not None:
        machine = {"machine": platform.machine(), "processors": os.cpu_count(), "python": platform.python_version()}
        about = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "checkpoint_bytes": size, **machine}
        settings = {"type": options.type, "split": options.split, "cache_size": options.cache_size}
        ratios = {"wall_ratio": wall, "processor_ratio": processor}
        options.json.write_text(
            json.dumps(about | settings | {"rounds": figures, "medians": medians} | ratios, indent=1)
        )


if __name__ == "__main__":
    main()
