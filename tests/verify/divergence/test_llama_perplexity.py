"""Running llama-perplexity: its output, and all the ways it can go wrong, with a stand-in program."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantkit.errors import BadInput, QuantkitError
from quantkit.verify.divergence.base_file import rows_per_chunk, write_base
from quantkit.verify.divergence.llama_perplexity import NotFinite, Printed, parse, run

# As llama.cpp printed it for three chunks of the fixture.
PRINTED = """0.02 minutes

chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS            Same top p
   1      26.8542 ±    7.4741      -0.02346 ±    0.01495       0.01731 ±    0.00236     3.958 ±  0.733 %    93.701 ±  2.164 %
   2      21.6787 ±    4.1094       0.00303 ±    0.01080       0.01676 ±    0.00153     3.333 ±  0.451 %    91.339 ±  1.768 %
   3      29.7273 ±    4.7053       0.00272 ±    0.00923       0.01739 ±    0.00131     3.202 ±  0.360 %    90.026 ±  1.537 %

====== Perplexity statistics ======
Mean PPL(Q)                   :  29.727312 ±   4.705300
Mean PPL(base)                :  29.646501 ±   4.693916
Cor(ln(PPL(Q)), ln(PPL(base))):  99.78%
Mean ln(PPL(Q)/PPL(base))     :   0.002722 ±       -nan
Mean PPL(Q)/PPL(base)         :   1.002726 ±   0.004763
Mean PPL(Q)-PPL(base)         :   0.080811 ±   0.184338

====== KL divergence statistics ======
Mean    KLD:   0.017390 ±   0.001310
Maximum KLD:   0.338484
99.9%   KLD:   0.254815
99.0%   KLD:   0.140770
95.0%   KLD:   0.054624
90.0%   KLD:   0.037199
Median  KLD:   0.010245
10.0%   KLD:   0.001868
Minimum KLD:  -0.000002

====== Token probability statistics ======
Mean    Δp: -0.132 ± 0.072 %
Maximum Δp: 26.674%
RMS Δp    :  3.202 ± 0.360 %
Same top p: 90.026 ± 1.537 %

"""  # noqa: E501
CONTEXT, CHUNKS, VOCAB = 80, 3, 4096
SCORED = CHUNKS * rows_per_chunk(CONTEXT)
GGUFOf = Callable[[str], Path]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return written(tmp_path / "base")


def written(path: Path, *, context: int = CONTEXT, chunks: int = CHUNKS, vocab: int = VOCAB) -> Path:
    row = np.full((1, vocab), -np.log(vocab), np.float32)
    tokens = np.zeros((chunks, context), np.int32)
    write_base(path, tokens, vocab, (row for _ in range(chunks * rows_per_chunk(context))))
    return path


def program(folder: Path, *lines: str) -> Path:
    """A folder of programs whose llama-perplexity is a shell script."""
    script = folder / "bin" / "llama-perplexity"
    script.parent.mkdir()
    script.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
    script.chmod(0o755)
    (folder / "printed").write_text(PRINTED, encoding="utf-8")
    return script.parent


def test_figures_of_a_printed_table(tmp_path: Path) -> None:
    path = tmp_path / "printed"
    path.write_text(PRINTED, encoding="utf-8")
    figures = parse(path, 381)
    assert figures.ppl_q == Printed(29.727312, 4.7053)
    assert figures.ppl_base == Printed(29.646501, 4.693916)
    assert figures.ln_ratio == Printed(0.002722, 0.0)  # the root of a rounding error
    assert figures.kld_mean == Printed(0.01739, 0.00131)
    assert (figures.kld_median, figures.kld_p99, figures.kld_p999) == (0.010245, 0.14077, 0.254815)
    assert figures.kld_max == 0.338484
    assert figures.rms_delta_p.value == pytest.approx(0.03202)
    assert (figures.same_top.value, figures.same_top.error) == pytest.approx((0.90026, 0.01537))
    assert figures.scored == 381
    # The second chunk's mean is twice the first two's less the first's.
    assert [chunk.kld for chunk in figures.chunks] == pytest.approx([0.01731, 0.01621, 0.01865])
    second = 2 * np.log(21.6787) - np.log(26.8542)
    assert [chunk.surprise for chunk in figures.chunks][:2] == pytest.approx([np.log(26.8542), second])


@pytest.mark.parametrize("number", ["29.727312", "0.017390", "0.01676", "21.6787", "90.026 ± 1.537 %\n\n"])
@pytest.mark.parametrize("instead", ["nan", "-nan", "inf"])
def test_nan_anywhere_is_not_finite(number: str, instead: str, tmp_path: Path) -> None:
    path = tmp_path / "printed"
    path.write_text(PRINTED.replace(number, instead + number[len(number.split(maxsplit=1)[0]) :]), encoding="utf-8")
    with pytest.raises(NotFinite, match=f"{path}: llama-perplexity printed {instead}"):
        parse(path, 381)


def test_missing_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "printed"
    path.write_text(PRINTED.replace("Median  KLD", "Median KL"), encoding="utf-8")
    with pytest.raises(QuantkitError, match="no line 'Median  KLD'"):
        parse(path, 381)


def test_command_line_and_logs(fixture_gguf: GGUFOf, base: Path, tmp_path: Path) -> None:
    programs = program(tmp_path, f'echo "$@" > {tmp_path}/arguments', "echo loading >&2", f"cat {tmp_path}/printed")
    model = fixture_gguf("q8_0")
    figures = run(programs, model, base, tmp_path / "out", ("--threads", "1"))
    assert len(figures.chunks) == CHUNKS
    assert figures.scored == SCORED == 117
    said = (tmp_path / "arguments").read_text().split()
    expected = f"--model {model} --kl-divergence-base {base} --kl-divergence --ctx-size 80 --threads 1"
    assert said == expected.split()
    assert (tmp_path / "out" / "llama-perplexity.log").read_text() == "loading\n"
    assert (tmp_path / "out" / "llama-perplexity.txt").read_text() == PRINTED


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["echo out of memory >&2", "exit 3"], "ended with status 3; its log, .* ends: out of memory"),
        (["echo loading >&2", "kill -SEGV $$"], r"crashed \(SIGSEGV\); .*--no-repack.*loading"),
        (["echo failed to decode >&2", "head -n 4 printed"], "no line 'Mean PPL"),
        (["grep -v '^   3 ' printed", "echo failed to decode >&2"], "compared 2 of 3 chunks; .*failed to decode"),
    ],
)
def test_program_that_dies_or_gives_up(
    lines: list[str], words: str, fixture_gguf: GGUFOf, base: Path, tmp_path: Path
) -> None:
    programs = program(tmp_path, f"cd {tmp_path}", *lines)
    with pytest.raises(QuantkitError, match=words) as failed:
        run(programs, fixture_gguf("q8_0"), base, tmp_path / "out")
    assert "\n" not in str(failed.value)
    assert failed.value.exit_code == 1


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"vocab": 4000}, "of a vocabulary of 4000, .* has 4096"),
        ({"context": 5000, "chunks": 1, "vocab": 4096}, "chunks of 5000 tokens, .* takes 4096"),
        ({"chunks": 2}, "78 scored tokens, llama-perplexity wants 100"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    shape: dict[str, int], words: str, fixture_gguf: GGUFOf, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    if shape.get("context"):  # the header and holes: the size is right
        size = 20 + 4 * 5000 + 2 * rows_per_chunk(5000) * (4096 + 4)
        base.write_bytes(b"_logits_" + struct.pack("<Iii", 5000, 4096, 1))
        with base.open("r+b") as file:
            file.truncate(size)
    else:
        written(base, **shape)
    programs = program(tmp_path, f"touch {tmp_path}/started")
    with pytest.raises(BadInput, match=words):
        run(programs, fixture_gguf("q8_0"), base, tmp_path / "out")
    assert not (tmp_path / "started").exists()


def test_folder_without_the_program_is_refused(fixture_gguf: GGUFOf, base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no llama-perplexity there"):
        run(tmp_path, fixture_gguf("q8_0"), base, tmp_path / "out")
