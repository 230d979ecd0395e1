#!/usr/bin/env python3
"""Compares GGUF files of the fixture: plain, with importance matrices, compensated, and tuned by AutoRound.

    scripts/setup_llama_cpp
    scripts/setup_autoround
    scripts/bench_compensation.py --json build/compensation.json

Every file is made by the command line of its program and of the same 131,072 calibration tokens; quantkit's overflow
guard is off, so that types equal llama-quantize's. Then gguf-py's dequantized tensors go into transformers' model in
float32, which is held against the FP8 model on documents that nothing was calibrated with: KL divergence by kind of
text, and how many greedy answers to prompts for tool calls stay the same. Intervals are of 95 %, from drawing whole
documents again. Without AutoRound's environment it is left out, with a line that says so.

Prints the tables of docs/compensation.md; --json also leaves the picture beside the file, with the ending .svg.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench_gguf import Measured, machine
from gguf_peers.documents import HELD_OUT, AnswerKey, scored_documents
from gguf_peers.files import (
    AUTOROUND,
    COMPENSATED,
    LLAMA_CPP,
    MATRICES_ONLY,
    METHODS,
    MODES,
    TUNED,
    TUNED_TYPE,
    WHOLE_MIX,
    Inputs,
    prepare,
    size_of,
    write_file,
    write_tuned,
)
from gguf_peers.picture import draw_picture
from gguf_peers.tables import HELD_OUT_KIND, tables
from held_out_divergence import FIXTURE, Divergence, Ruler, joined, ratio_of_means, ratio_of_medians
from transformers import MiniMaxM2ForCausalLM
from transformers_reference import model_from_gguf

TYPES = "q2_k,q3_k_m,q4_k_m,iq4_xs,q5_k_m,q6_k"
Kinds = dict[str, Divergence]
UNQUANTIZED = ("model.embed_tokens.weight", "lm_head.weight")  # in MATRICES_ONLY


class Scores:
    """What the files lose: rows as they are reported, and the divergences that ratios are taken of."""

    def __init__(self) -> None:
        self._ruler = Ruler(scored_documents())
        self._key = AnswerKey(self._ruler.reference)
        self._kinds: dict[tuple[str, str, str], Kinds] = {}
        self.rows: list[dict[str, Any]] = []

    def add(self, mode: str, type_name: str, method: str, path: Path, measured: Measured) -> None:
        """Score the file at `path`."""
        model = model_from_gguf([path], FIXTURE / "config.json")
        if method == TUNED and mode == MATRICES_ONLY:
            self._restore(model)
        kinds = self._ruler.divergence(model)
        kinds = {HELD_OUT_KIND: joined(kinds[kind] for kind in HELD_OUT)} | kinds
        self._kinds[mode, type_name, method] = kinds
        row = {
            "mode": mode,
            "type": type_name,
            "method": method,
            "seconds": measured.wall,
            "peak_rss_bytes": measured.peak_rss,
            "size": asdict(size_of(path)),
            "divergence": {kind: one.as_json() for kind, one in kinds.items()},
            "answers": self._key.agreement(model),
        }
        self.rows.append(row)
        print_row(row)

    def report(self) -> dict[str, Any]:
        """All rows, and the compensated files' share of every other file's divergence."""
        ratios = [
            {
                "mode": mode,
                "type": type_name,
                "against": against,
                "kind": kind,
                "mean": asdict(ratio_of_means(ours, theirs[kind])),
                "median": asdict(ratio_of_medians(ours, theirs[kind])),
            }
            for (mode, type_name, against), theirs in self._kinds.items()
            if against != COMPENSATED and (mode, type_name, COMPENSATED) in self._kinds
            for kind, ours in self._kinds[mode, type_name, COMPENSATED].items()
        ]
        positions = {kind: len(one.positions) for kind, one in next(iter(self._kinds.values())).items()}
        return {
            "positions": positions,
            "prompts": len(self._key.answers),
            "files": self.rows,
            "ratios": ratios,
        }

    def _restore(self, model: MiniMaxM2ForCausalLM) -> None:
        """Give a file of the whole mix the embeddings and output that the other files of MATRICES_ONLY keep."""
        kept = self._ruler.reference.state_dict()
        model.load_state_dict({name: kept[name] for name in UNQUANTIZED}, strict=False)


def contest(types: list[str], work: Path, threads: int) -> dict[str, Any]:
    """Write and score every file; files are deleted as soon as they are scored."""
    inputs, scores = prepare(work, threads), Scores()
    if TUNED_TYPE in types:
        add_tuned(scores, inputs, work / "tuned.gguf")
    for mode, settings in MODES.items():
        for type_name in types:
            for method in METHODS if settings.only is None or type_name in settings.only else ():
                out = work / f"{len(scores.rows)}.gguf"  # reports and logs beside it stay
                measured = write_file(method, settings, type_name, inputs, out)
                scores.add(mode, type_name, method, out, measured)
                out.unlink()
    return scores.report()


def add_tuned(scores: Scores, inputs: Inputs, out: Path) -> None:
    if not AUTOROUND.exists():
        print(f"{TUNED} is left out: {AUTOROUND} does not exist; run scripts/setup_autoround first", flush=True)
        return
    measured = write_tuned(inputs, out)
    for mode in (MATRICES_ONLY, WHOLE_MIX):
        scores.add(mode, TUNED_TYPE, TUNED, out, measured)


def print_row(row: dict[str, Any]) -> None:
    found, size = row["divergence"][HELD_OUT_KIND], row["size"]
    kinds = "  ".join(f"{kind} {one['mean']:.6f}" for kind, one in row["divergence"].items() if kind != HELD_OUT_KIND)
    print(
        f"{row['mode']:22s} {row['type']:7s} {row['method']:12s} {size['bits_of_matrices']:.3f} bits "
        f"{found['mean']:.6f} +- {found['standard_error']:.6f}  median {found['median']:.2e}  p99 {found['p99']:.4f}  "
        f"{kinds}  answers {row['answers']:.3f}  {row['seconds']:.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default=TYPES, help="mixes of llama-quantize, with commas between them")
    parser.add_argument("--work", type=Path, help="folder with room for the outputs (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write every figure to this file, and the picture beside it")
    arguments = parser.parse_args()
    if not LLAMA_CPP.exists():
        sys.exit(f"{LLAMA_CPP} does not exist; run scripts/setup_llama_cpp first")
    torch.set_num_threads(1)  # the fixture's matrices are too small for more
    about, threads = machine(), len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        found = contest(arguments.types.split(","), Path(folder), threads)
    print(f"\n{tables(found)}")
    if arguments.json:
        report = {"threads": threads, "machine": about, **found}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        arguments.json.with_suffix(".svg").write_text(draw_picture(found["files"], HELD_OUT_KIND), encoding="utf-8")


if __name__ == "__main__":
    main()
