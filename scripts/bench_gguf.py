#!/usr/bin/env python3
"""Times `quantkit gguf` against convert_hf_to_gguf.py followed by llama-quantize, on the same checkpoint and machine.

    scripts/setup_llama_cpp
    scripts/make_synthetic.py build/one-layer --layers 1 --real-dims
    scripts/bench_gguf.py build/one-layer --threads 2 --repeat 5 --json build/bench_gguf.json

Both sides read the same FP8 shards and write the same type; the classic one needs a BF16 file between its two programs
(deleted after each round). Rounds alternate which side goes first. Before every timing the checkpoint is read once, so
that it is in the page cache as far as memory allows, and pending writes are flushed. Wall time is that of the
processes from start to exit, imports included. Peak memory is the kernel's maximum resident set of a process (the
largest one where there are several), which counts mapped files that are resident; for the classic side it is the larger
of the two programs. One real layer needs about 19 GB for the converter and 12 GB of disk.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
READ_SIZE = 1 << 24


@dataclass(frozen=True)
class Measured:
    """One finished program: wall seconds, processor seconds (user + system) and peak resident bytes."""

    wall: float
    cpu: float
    peak_rss: int


@dataclass(frozen=True)
class Round:
    """One side's turn: its programs by name, and the size of the final file and of the file between programs."""

    side: str
    programs: dict[str, Measured]
    output_bytes: int
    intermediate_bytes: int = 0

    @property
    def wall(self) -> float:
        return sum(program.wall for program in self.programs.values())

    @property
    def peak_rss(self) -> int:
        return max(program.peak_rss for program in self.programs.values())


@dataclass(frozen=True)
class Settings:
    checkpoint: Path
    type: str
    threads: int
    llama_quantize: Path
    folder: Path


def measure(command: Sequence[str | Path], threads: int, log: Path) -> Measured:
    """Runs a program to its end and asks the kernel what it used; the last lines of its output explain a failure."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads))
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | limits, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        sys.exit(f"{command[0]} exited with {process.returncode}:\n{tail}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def settle(checkpoint: Path) -> None:
    """Reads the checkpoint into the page cache and waits until everything written so far is on disk."""
    os.sync()
    for path in sorted(checkpoint.iterdir()):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(READ_SIZE):
                    pass


def run_quantkit(settings: Settings) -> Round:
    out, log = settings.folder / "quantkit.gguf", settings.folder / "quantkit.log"
    command: list[str | Path] = [sys.executable, "-m", "quantkit", "gguf", settings.type, settings.checkpoint]
    command += ["-o", out, "--threads", str(settings.threads), "--force"]
    measured = measure(command, settings.threads, log)
    size = sum(path.stat().st_size for path in settings.folder.glob("quantkit*.gguf"))
    return Round("quantkit", {"quantkit gguf": measured}, size)


def run_classic(settings: Settings) -> Round:
    between, out = settings.folder / "bf16.gguf", settings.folder / "classic.gguf"
    convert: list[str | Path] = [sys.executable, ROOT / "scripts" / "convert_reference.py", settings.checkpoint]
    convert += ["--outfile", between, "--outtype", "bf16"]
    quantize: list[str | Path] = [settings.llama_quantize, between, out, settings.type, str(settings.threads)]
    programs = {
        "convert_hf_to_gguf.py": measure(convert, settings.threads, settings.folder / "convert.log"),
        "llama-quantize": measure(quantize, settings.threads, settings.folder / "quantize.log"),
    }
    return Round("classic", programs, out.stat().st_size, between.stat().st_size)


def rounds(settings: Settings, repeat: int) -> Iterator[Round]:
    """Both sides, `repeat` times, the first one changing from round to round; outputs are deleted after each turn."""
    for number in range(repeat):
        sides = (run_quantkit, run_classic)
        for run in sides if number % 2 == 0 else reversed(sides):
            settle(settings.checkpoint)
            yield run(settings)
            for path in settings.folder.glob("*.gguf*"):
                path.unlink()


def summarize(done: Sequence[Round]) -> dict[str, Any]:
    """Medians per side, and the ratios that matter: below 1 means quantkit needs less."""
    sides: dict[str, Any] = {}
    for side in ("quantkit", "classic"):
        turns = [turn for turn in done if turn.side == side]
        sides[side] = {
            "wall_seconds": statistics.median(turn.wall for turn in turns),
            "cpu_seconds": statistics.median(sum(p.cpu for p in turn.programs.values()) for turn in turns),
            "peak_rss_bytes": statistics.median(turn.peak_rss for turn in turns),
            "output_bytes": turns[-1].output_bytes,
            "intermediate_bytes": turns[-1].intermediate_bytes,
            "programs": {
                name: {
                    "wall_seconds": statistics.median(turn.programs[name].wall for turn in turns),
                    "peak_rss_bytes": statistics.median(turn.programs[name].peak_rss for turn in turns),
                }
                for name in turns[0].programs
            },
        }
    ours, theirs = sides["quantkit"], sides["classic"]
    ratios = {key: ours[key] / theirs[key] for key in ("wall_seconds", "cpu_seconds", "peak_rss_bytes")}
    return {"median": sides, "quantkit_over_classic": ratios}


def machine() -> dict[str, Any]:
    """What the numbers depend on, without naming the host."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "processors_usable": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_before": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def print_round(number: int, turn: Round) -> None:
    parts = ", ".join(
        f"{name} {used.wall:.1f} s at {used.peak_rss / 1e9:.2f} GB" for name, used in turn.programs.items()
    )
    print(f"{number:3d}  {turn.side:9s} {turn.wall:8.1f} s  {turn.peak_rss / 1e9:6.2f} GB   {parts}", flush=True)


def print_summary(summary: dict[str, Any]) -> None:
    print("\nmedian       wall       processor  peak memory  output    intermediate")
    for side, used in summary["median"].items():
        print(
            f"{side:9s} {used['wall_seconds']:8.1f} s {used['cpu_seconds']:10.1f} s"
            f"{used['peak_rss_bytes'] / 1e9:10.2f} GB {used['output_bytes'] / 1e9:7.3f} GB"
            f"{used['intermediate_bytes'] / 1e9:8.3f} GB"
        )
    ratios = summary["quantkit_over_classic"]
    print(
        f"ratio     {ratios['wall_seconds']:8.3f}   {ratios['cpu_seconds']:10.3f}   {ratios['peak_rss_bytes']:9.3f}"
        "      (quantkit / classic)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    llama_cpp = Path(os.environ.get("QUANTKIT_LLAMA_CPP", ROOT / ".cache" / "llama.cpp"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--type", default="q4_k_m")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--work", type=Path, help="folder with room for the outputs (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write every round and the medians to this file")
    parser.add_argument("--llama-quantize", type=Path, default=llama_cpp / "build" / "bin" / "llama-quantize")
    arguments = parser.parse_args()
    if not arguments.llama_quantize.exists():
        sys.exit(f"{arguments.llama_quantize} does not exist; run scripts/setup_llama_cpp first")
    checkpoint = arguments.checkpoint.resolve()
    about = machine()
    print(f"{checkpoint.name} to {arguments.type}, {arguments.threads} threads, {about['processor']}", flush=True)
    done = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        settings = Settings(
            checkpoint, arguments.type, arguments.threads, arguments.llama_quantize.resolve(), Path(folder)
        )
        for turn in rounds(settings, arguments.repeat):
            done.append(turn)
            print_round((len(done) + 1) // 2, turn)
    summary = summarize(done)
    print_summary(summary)
    if arguments.json:
        report = {
            "checkpoint": checkpoint.name,
            "checkpoint_bytes": sum(path.stat().st_size for path in checkpoint.iterdir() if path.is_file()),
            "type": arguments.type,
            "threads": arguments.threads,
            "machine": about,
            **summary,
            "rounds": [asdict(turn) for turn in done],
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
