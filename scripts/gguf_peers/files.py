"""GGUF files of the fixture by every method, each through the command line of the program that writes it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import gguf
from bench_gguf import ROOT, Measured, measure
from int4_peers.contests import run_quantkit
from int4_peers.quality import FIXTURE, write_float_checkpoint
from safetensors.numpy import load_file
from transformers import AutoTokenizer

LLAMA_CPP = Path(os.environ.get("QUANTKIT_LLAMA_CPP", ROOT / ".cache" / "llama.cpp")) / "build" / "bin"
AUTOROUND = Path(os.environ.get("QUANTKIT_AUTOROUND", ROOT / ".cache" / "autoround")) / "bin" / "python"
SAMPLES, LENGTH = 256, 512  # of the calibration set
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@dataclass(frozen=True)
class Mode:
    """Which tensors get which types, said to `quantkit gguf` and to llama-quantize; of the types `only`, if given."""

    quantkit: tuple[str, ...] = ()
    llama_quantize: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None


MATRICES_ONLY, WHOLE_MIX, ATTENTION_8 = "experts and attention", "whole mix", "attention at Q8_0"
MODES = {
    # Embeddings and output are an eighth of the fixture's weights and half a per cent of M2.7's.
    MATRICES_ONLY: Mode(
        ("--tensor-type", "^(token_embd|output)[.]weight$=BF16"),
        ("--token-embedding-type", "bf16", "--output-tensor-type", "bf16"),
    ),
    WHOLE_MIX: Mode(),
    ATTENTION_8: Mode(
        ("--recipe", str(ROOT / "recipes" / "q4_k_m-attn8.yaml")),
        ("--tensor-type", "attn_(q|k|v|output)=q8_0", "--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0"),
        only=("q4_k_m",),
    ),
}
# What everybody else's importance matrix goes into.
GGML = ("--kquants", "ggml")
PLAIN, IMATRIX, THEIRS, COMPENSATED, TUNED = "plain", "imatrix", "llama.cpp", "compensated", "AutoRound"
METHODS = (PLAIN, IMATRIX, THEIRS, COMPENSATED)
TUNED_TYPE = "q4_k_m"  # of AutoRound's file, which is made once


@dataclass(frozen=True)
class Inputs:
    """What the methods start from, all of the same tokens: ids, quantkit's matrix, llama-imatrix's; floats as GGUF."""

    tokens: Path
    matrix: Path
    their_matrix: Path
    floats: Path
    threads: int


@dataclass(frozen=True)
class Size:
    """Of a GGUF: bytes of its tensors, bits per weight of all of them and of the matrices of experts and attention."""

    tensor_bytes: int
    bits_per_weight: float
    bits_of_matrices: float
    types: dict[str, int]


def prepare(work: Path, threads: int) -> Inputs:
    """Calibrate once for all types: a token file, quantkit's and llama.cpp's importance matrix of it."""
    inputs = Inputs(
        work / "tokens.safetensors", work / "imatrix.gguf", work / "theirs.gguf", work / "floats.gguf", threads
    )
    size = ("--samples", str(SAMPLES), "--sequence-length", str(LENGTH))
    build = ("calibration", "build", "agentic", "--tokenizer", FIXTURE, "-o", inputs.tokens, *size)
    run_quantkit(threads, work / "tokens.log", *build)
    run_quantkit(threads, work / "imatrix.log", "imatrix", FIXTURE, "-o", inputs.matrix, "--tokens", inputs.tokens)
    # Float32 holds the products of FP8 values and block scales exactly, BF16 would not.
    convert = [sys.executable, ROOT / "scripts" / "convert_reference.py", FIXTURE, "--outfile", inputs.floats]
    measure([*convert, "--outtype", "f32"], threads, work / "convert.log")
    text = work / "calibration.txt"
    text.write_text(calibration_text(inputs.tokens), encoding="utf-8")
    command: list[str | Path] = [
        LLAMA_CPP / "llama-imatrix",
        "-m",
        inputs.floats,
        "-f",
        text,
        "-o",
        inputs.their_matrix,
    ]
    command += ["-c", str(LENGTH), "--parse-special", "--no-ppl", "-t", str(threads), "-ngl", "0"]
    measure(command, threads, work / "llama-imatrix.log")
    return inputs


def calibration_text(tokens: Path) -> str:
    """The token file as llama-imatrix takes it: one text, which it cuts into chunks that cross the documents' ends."""
    tokenizer = AutoTokenizer.from_pretrained(FIXTURE)
    held = load_file(tokens)
    documents = [held["ids"][first:end] for first, end in zip(held["starts"], held["starts"][1:])]
    # A document that was cut within a character decodes to a replacement character at its end.
    return "".join(tokenizer.decode(ids.tolist()).rstrip("\N{REPLACEMENT CHARACTER}") for ids in documents)


def write_file(method: str, mode: Mode, type_name: str, inputs: Inputs, out: Path) -> Measured:
    """Write `type_name` by one of METHODS to `out`."""
    log = out.with_suffix(".log")
    if method == THEIRS:
        command: list[str | Path] = [LLAMA_CPP / "llama-quantize", "--imatrix", inputs.their_matrix]
        command += [*mode.llama_quantize, inputs.floats, out, type_name, str(inputs.threads)]
        return measure(command, inputs.threads, log)
    options: dict[str, tuple[str | Path, ...]] = {
        PLAIN: GGML,
        IMATRIX: ("--imatrix", inputs.matrix, *GGML),
        COMPENSATED: ("--compensate", "--tokens", inputs.tokens),
    }
    common = ("--no-overflow-guard", "--threads", str(inputs.threads))
    command = ["gguf", type_name, FIXTURE, "-o", out, *common, *mode.quantkit, *options[method]]
    return run_quantkit(inputs.threads, log, *command)


def write_tuned(inputs: Inputs, out: Path) -> Measured:
    """Write AutoRound's tuned TUNED_TYPE of the same tokens to `out`, whatever its own mix leaves at higher types."""
    source = out.with_suffix(".float32")
    write_float_checkpoint(source)
    program: list[str | Path] = [AUTOROUND, ROOT / "scripts" / "gguf_peers" / "autoround_side.py"]
    settings = ("--type", f"gguf:{TUNED_TYPE}")
    return measure([*program, source, inputs.tokens, out, *settings], inputs.threads, out.with_suffix(".log"))


def size_of(path: Path) -> Size:
    entries = gguf.GGUFReader(path).tensors
    matrices = [entry for entry in entries if entry.name.removesuffix(".weight").rpartition(".")[2] in MATRICES]
    return Size(
        sum(int(entry.n_bytes) for entry in entries),
        _bits(entries),
        _bits(matrices),
        dict(Counter(entry.tensor_type.name for entry in entries)),
    )


def _bits(entries: list[gguf.ReaderTensor]) -> float:
    return 8 * sum(int(entry.n_bytes) for entry in entries) / sum(int(entry.n_elements) for entry in entries)
