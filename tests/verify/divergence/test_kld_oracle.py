"""Our base file and our divergence against llama-perplexity's, byte for byte and digit for digit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.verify.client import Client
from quantkit.verify.divergence.base_file import BaseFile, encode, open_base, rows_per_chunk, write_base
from quantkit.verify.divergence.figures import compare_scores
from quantkit.verify.divergence.llama_perplexity import PROGRAM, LlamaPerplexityFigures, run
from quantkit.verify.divergence.scoring import score_passages
from quantkit.verify.records import Passage, Scores
from quantkit.verify.servers.start import ServerSettings, running

pytestmark = pytest.mark.full

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = Path(os.environ.get("QUANTKIT_LLAMA_CPP", ROOT / ".cache" / "llama.cpp")) / "build" / "bin"
CONTEXT, CHUNKS, VOCAB = 256, 15, 4096  # as many chunks as the text gives
FORCED_CHUNKS = 2
# Rows read from a file were rounded by up to half a code, 16 nats / 65535 / 2; a position's divergence, a mean of such
# errors, is off by as much at most. The mean over the 1905 positions is nearly free of it: the sum as llama-perplexity
# takes it comes out in its printed digits. Ours has a bucket of what the rounded probabilities lack of 1.
CODE, PRINTED, BUCKET = 1.3e-4, 1e-6, 5e-6
# --no-repack: kernels for AMX crash where the kernel of the machine does not allow them.
QUIET = ("--threads", "1", "--no-repack")

GGUFOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(fixture_gguf: GGUFOf, tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Save the log-probabilities of a mix of the fixture with llama-perplexity itself."""
    folder = tmp_path_factory.mktemp("saved")
    text = tiny_m2 / "heldout" / "text_code.txt"

    def save(mix: str) -> Path:
        out = folder / f"{mix}.base"
        if not out.exists():
            command = [PROGRAMS / PROGRAM, "-m", fixture_gguf(mix), "-f", text, "-c", str(CONTEXT)]
            command += ["--kl-divergence-base", out, *QUIET]
            subprocess.run(command, check=True, capture_output=True)
        return out

    return save


@pytest.fixture(scope="module")
def printed(
    saved: Callable[[str], Path], fixture_gguf: GGUFOf, tmp_path_factory: pytest.TempPathFactory
) -> LlamaPerplexityFigures:
    """What llama-perplexity prints of Q4_K_M against BF16."""
    return run(PROGRAMS, fixture_gguf("q4_k_m"), saved("bf16"), tmp_path_factory.mktemp("run"), QUIET)


def scores_of(base: BaseFile) -> list[Scores]:
    """The whole vocabulary at every scored position of each chunk, out of a base file."""
    found = []
    for tokens, rows in zip(base.tokens, base.rows(), strict=True):
        order = np.argsort(-rows, axis=1, kind="stable").astype(np.int32)
        actual = rows[np.arange(len(rows)), tokens[base.context // 2 + 1 :]]
        found.append(Scores(actual.astype(np.float64), order, np.take_along_axis(rows, order, 1)))
    return found


def forced(base: BaseFile, model: Path, folder: Path) -> list[Scores]:
    """The same from the embedded server, by forced scoring."""
    settings = ServerSettings(context=CONTEXT, concurrency=1, top=VOCAB, arguments=("--threads", "1"))
    passages = [Passage("x", f"chunk {n}", tokens) for n, tokens in enumerate(base.tokens[:FORCED_CHUNKS])]
    kept: dict[int, Scores] = {}
    with running("llama.cpp", model, folder, settings) as server, Client(server) as client:
        score_passages(client, passages, range(len(passages)), VOCAB, VOCAB, kept.__setitem__, 1)
    half = slice(CONTEXT // 2, None)
    return [Scores(kept[n].actual[half], kept[n].top_ids[half], kept[n].top[half]) for n in range(len(passages))]


def rows_of(scores: list[Scores]) -> NDArray[np.float32]:
    """Log-probabilities [rows, VOCAB] in the order of token ids."""
    rows = [np.take_along_axis(each.top, np.argsort(each.top_ids, 1), 1) for each in scores]
    return np.concatenate(rows)


def divergence(reference: list[Scores], quantized: list[Scores]) -> NDArray[np.float64]:
    return np.concatenate([compare_scores(a, b).kld for a, b in zip(reference, quantized, strict=True)])


def plain_mean(reference: BaseFile, quantized: BaseFile) -> float:
    """Mean of sum p (log p - log q) over the tokens with log p > -16."""
    means = []
    for ours, theirs in zip(reference.rows(), quantized.rows(), strict=True):
        terms = np.exp(ours.astype(np.float64)) * (ours.astype(np.float64) - theirs)
        means.append(np.where(ours > -16, terms, 0).sum(1).mean())
    return float(np.mean(means))


def test_base_file_written_again_is_byte_identical(saved: Callable[[str], Path], tmp_path: Path) -> None:
    for mix in ("bf16", "q4_k_m"):
        base = open_base(saved(mix))
        assert base.tokens.shape == (CHUNKS, CONTEXT)
        again = tmp_path / mix
        write_base(again, base.tokens, base.vocab, base.rows())
        assert again.read_bytes() == saved(mix).read_bytes()


def test_divergence_is_what_llama_perplexity_prints(
    saved: Callable[[str], Path], printed: LlamaPerplexityFigures
) -> None:
    """Both models' rows from the same program. Ours of the quantized model went through 16-bit codes."""
    reference, quantized = scores_of(open_base(saved("bf16"))), scores_of(open_base(saved("q4_k_m")))
    kld = divergence(reference, quantized)
    theirs = plain_mean(open_base(saved("bf16")), open_base(saved("q4_k_m")))
    print(f"mean KLD {kld.mean():.7f}, plain {theirs:.7f}, llama-perplexity {printed.kld_mean.value:.6f}")
    assert theirs == pytest.approx(printed.kld_mean.value, abs=PRINTED)
    assert len(kld) == printed.scored == CHUNKS * rows_per_chunk(CONTEXT)
    assert kld.mean() == pytest.approx(printed.kld_mean.value, abs=BUCKET)
    assert np.median(kld) == pytest.approx(printed.kld_median, abs=CODE)
    assert np.quantile(kld, 0.99) == pytest.approx(printed.kld_p99, abs=CODE)
    assert kld.max() == pytest.approx(printed.kld_max, abs=CODE)
    surprise = [-np.concatenate([scores.actual for scores in model]) for model in (quantized, reference)]
    assert np.exp(surprise[0].mean()) == pytest.approx(printed.ppl_q.value, rel=1e-5)
    assert np.exp(surprise[1].mean()) == pytest.approx(printed.ppl_base.value, rel=1e-5)
    assert (surprise[0] - surprise[1]).mean() == pytest.approx(printed.ln_ratio.value, abs=1e-5)
    same = np.concatenate([a.top_ids[:, 0] == b.top_ids[:, 0] for a, b in zip(reference, quantized, strict=True)])
    assert same.mean() == pytest.approx(printed.same_top.value, abs=6e-6)
    delta = np.exp(-surprise[0]) - np.exp(-surprise[1])
    assert np.sqrt((delta**2).mean()) == pytest.approx(printed.rms_delta_p.value, abs=1e-5)
    per_chunk = kld.reshape(CHUNKS, -1).mean(1)
    assert [chunk.kld for chunk in printed.chunks] == pytest.approx(per_chunk.tolist(), abs=2 * CHUNKS * 1e-5)


def test_forced_scoring_is_close_to_llama_perplexity(
    saved: Callable[[str], Path], printed: LlamaPerplexityFigures, fixture_gguf: GGUFOf, tmp_path: Path
) -> None:
    """Another build, one token at a time: other roundings. Also how far its codes are from the program's."""
    base = open_base(saved("bf16"))
    reference = forced(base, fixture_gguf("bf16"), tmp_path / "bf16")
    quantized = forced(base, fixture_gguf("q4_k_m"), tmp_path / "q4_k_m")
    kld = divergence(reference, quantized)
    theirs = np.concatenate(list(base.rows())[:FORCED_CHUNKS])
    ours = rows_of(reference)
    first = printed.chunks[:FORCED_CHUNKS]
    expected = float(np.mean([chunk.kld for chunk in first]))
    surprise = -float(np.concatenate([scores.actual for scores in quantized]).mean())
    difference = np.abs(ours - theirs)[theirs > -8]
    codes = np.abs(encode(ours)[:, 4:].astype(int) - encode(theirs)[:, 4:].astype(int))
    print(f"mean KLD {kld.mean():.5f}, llama-perplexity {expected:.5f}; codes: median {np.median(codes):.0f} apart")
    print(f"log p of BF16 above -8: median {np.median(difference):.4f}, largest {difference.max():.3f} nat apart")
    assert kld.mean() == pytest.approx(expected, rel=0.1)
    assert surprise == pytest.approx(np.mean([chunk.surprise for chunk in first]), abs=0.01)
    assert np.median(difference) < 0.01
