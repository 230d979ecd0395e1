"""KL divergence by llama.cpp's own llama-perplexity --kl-divergence, from a base file and a GGUF."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import BadInput, QuantkitError
from quantkit.formats.gguf.read import read_gguf
from quantkit.verify.divergence.base_file import BaseFile, open_base
from quantkit.verify.servers import keeper
from quantkit.verify.servers.running import last_lines

PROGRAM = "llama-perplexity"
PRINTED, LOG = "llama-perplexity.txt", "llama-perplexity.log"
FEWEST_ROWS = 100  # below that it prints no statistics

_NUMBER = r"(-?(?:nan|inf|[0-9.]+(?:e[-+]\d+)?))"
_PAIR = rf"\s*{_NUMBER} ±\s*{_NUMBER}"
# Chunk, then five figures of all chunks up to it: perplexity, ln ratio, KLD, RMS Δp and same top in percent.
_CHUNK = re.compile(rf"\s*(\d+){_PAIR}{_PAIR}{_PAIR}{_PAIR} %{_PAIR} %\s*")


class NotFinite(QuantkitError):
    """llama-perplexity printed NaN or infinity: the model is broken there."""


@dataclass(frozen=True)
class Printed:
    """A figure as printed, and the standard error behind its ±, tokens taken as independent."""

    value: float
    error: float


@dataclass(frozen=True)
class Chunk:
    """Means over one chunk, computed back from cumulative ones that are printed to 4 and 5 decimals."""

    kld: float
    surprise: float  # -log p of the quantized model, nats


@dataclass(frozen=True)
class LlamaPerplexityFigures:
    """What it printed, in nats and shares of 1. `ppl_base` is too low where tokens lie below the base file's floor."""

    ppl_q: Printed
    ppl_base: Printed
    ln_ratio: Printed
    kld_mean: Printed
    kld_median: float
    kld_p99: float
    kld_p999: float
    kld_max: float
    rms_delta_p: Printed
    same_top: Printed
    scored: int
    chunks: tuple[Chunk, ...]


def run(programs: Path, model: Path, base: Path, folder: Path, arguments: Sequence[str] = ()) -> LlamaPerplexityFigures:
    """Compare the GGUF `model` (a split one's first part) with `base`; PRINTED and LOG in `folder` keep what is said.

    `programs` is llama.cpp's folder of programs; `arguments` go to the end of the command line. Raises BadInput when
    file and model do not belong together, of which the program only warns; NotFinite; QuantkitError when it dies.
    """
    program = programs if programs.is_file() else programs / PROGRAM
    if not program.is_file() or not os.access(program, os.X_OK):
        raise BadInput(f"{programs}: no {PROGRAM} there; give the folder of llama.cpp's programs (build/bin)")
    header = open_base(base)
    _check(header, model)
    command = [program.absolute(), "--model", model, "--kl-divergence-base", base, "--kl-divergence"]
    command += ["--ctx-size", str(header.context), *arguments]
    log = folder / LOG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / PRINTED).open("wb") as printed, log.open("wb") as said:
            status = _kept([str(word) for word in command], printed.fileno(), said.fileno())
    except OSError as error:
        raise QuantkitError(f"{log}: cannot be written ({error.strerror}); mend that") from None
    if status != 0:
        raise QuantkitError(f"{PROGRAM} {_how(status)}; its log, {log}, ends: {last_lines(log)}")
    figures = parse(folder / PRINTED, header.scored)
    if len(figures.chunks) != len(header.tokens):
        raise QuantkitError(
            f"{PROGRAM} compared {len(figures.chunks)} of {len(header.tokens)} chunks; its log, {log}, ends: "
            f"{last_lines(log)}"
        )
    return figures


def parse(printed: Path, scored: int) -> LlamaPerplexityFigures:
    """Figures over `scored` tokens from what was printed. Raises NotFinite, QuantkitError when some are missing."""
    text = printed.read_text(errors="replace")

    def figure(name: str) -> list[str]:
        match = re.search(rf"^{re.escape(name)}\s*:\s*{_NUMBER}(?: ±\s*{_NUMBER})?", text, re.MULTILINE)
        if match is None:
            raise QuantkitError(f"{printed}: no line {name!r}; run {PROGRAM} by hand to see what it lacks")
        return [match[1], match[2] or "0"]

    def pair(name: str, share: float = 1) -> Printed:
        value, error = figure(name)
        # The ± of two equal models is the root of a rounding error, which may be below zero.
        spread = float(error)
        return Printed(share * _finite(value, printed), share * spread if math.isfinite(spread) else 0.0)

    table = [match for line in text.splitlines() if (match := _CHUNK.fullmatch(line))]
    return LlamaPerplexityFigures(
        ppl_q=pair("Mean PPL(Q)"),
        ppl_base=pair("Mean PPL(base)"),
        ln_ratio=pair("Mean ln(PPL(Q)/PPL(base))"),
        kld_mean=pair("Mean    KLD"),
        kld_median=pair("Median  KLD").value,
        kld_p99=pair("99.0%   KLD").value,
        kld_p999=pair("99.9%   KLD").value,
        kld_max=pair("Maximum KLD").value,
        rms_delta_p=pair("RMS Δp", 0.01),
        same_top=pair("Same top p", 0.01),
        scored=scored,
        chunks=_per_chunk([(_finite(row[2], printed), _finite(row[6], printed)) for row in table]),
    )


def _finite(text: str, printed: Path) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotFinite(f"{printed}: {PROGRAM} printed {text}; the quantized model is broken")
    return value


def _per_chunk(cumulative: Sequence[tuple[float, float]]) -> tuple[Chunk, ...]:
    """From perplexity and mean KLD of the first 1, 2, … chunks."""
    chunks, surprise_before, kld_before = [], 0.0, 0.0
    for number, (perplexity, mean) in enumerate(cumulative, start=1):
        surprise, kld = number * math.log(perplexity), number * mean
        chunks.append(Chunk(kld - kld_before, surprise - surprise_before))
        surprise_before, kld_before = surprise, kld
    return tuple(chunks)


def _check(base: BaseFile, model: Path) -> None:
    contents = read_gguf(model)
    architecture = contents.keys.get("general.architecture")
    longest = contents.keys.get(f"{architecture}.context_length")
    shapes = {tensor.name: tensor.shape for tensor in contents.tensors}
    vocab = shapes.get("token_embd.weight", (0,))[0]
    if vocab != base.vocab:
        raise BadInput(
            f"{base.path}: of a vocabulary of {base.vocab}, {model} has {vocab}; make a base file of this model's "
            "original"
        )
    if longest is not None and base.context > longest:
        raise BadInput(
            f"{base.path}: chunks of {base.context} tokens, {model} takes {longest}; make one with shorter chunks"
        )
    if base.scored < FEWEST_ROWS:
        raise BadInput(
            f"{base.path}: {base.scored} scored tokens, {PROGRAM} wants {FEWEST_ROWS} at least; make one of more text"
        )


def _kept(command: Sequence[str], printed: int, said: int) -> int:
    """Run a command that ends when this process does, whatever ends it; return its exit status as a shell tells it."""
    process = subprocess.Popen(
        [sys.executable, "-P", keeper.__file__, *command],
        stdin=subprocess.PIPE,
        stdout=printed,
        stderr=said,
        start_new_session=True,
    )
    try:
        return process.wait()
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def _how(status: int) -> str:
    if status > keeper.SIGNALLED:
        name = signal.Signals(status - keeper.SIGNALLED).name
        return f"crashed ({name}); where its kernels do not suit the processor, --no-repack may help"
    return f"ended with status {status}"
