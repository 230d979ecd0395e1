"""Divergence by llama.cpp's own program: a base file of the reference's exact rows, then llama-perplexity on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantkit.errors import BadInput
from quantkit.verify.divergence.base_file import write_base
from quantkit.verify.divergence.llama_perplexity import LlamaPerplexityFigures, NotFinite, Printed, run
from quantkit.verify.divergence.streamed import run_passages
from quantkit.verify.divergence.texts import PASSAGE_TOKENS
from quantkit.verify.estimates import NORMAL_95, Interval
from quantkit.verify.gate import Figure
from quantkit.verify.records import Passage

PROGRAM = "llama-perplexity"


@dataclass(frozen=True)
class ProgramDivergence:
    """What the program printed, as figures for the gate, and mean KLD and surprise by domain."""

    figures: dict[str, Figure]
    values: dict[str, float]
    domains: dict[str, dict[str, float]]


def has_program(programs: Path | None) -> bool:
    """Whether llama-perplexity is in a folder of llama.cpp's programs."""
    return programs is not None and (programs / PROGRAM).is_file()


def write_base_of(
    path: Path,
    passages: Sequence[Passage],
    out: Path,
    *,
    device: str = "cpu",
    precision: str = "float32",
    memory: int | None = None,
    quiet: bool = False,
) -> list[Passage]:
    """Write the base file `out` of the model at `path` from its streamed pass; returns the passages in it.

    The format holds chunks of one length, so only passages of PASSAGE_TOKENS enter, ordered by domain; of each the
    second half is scored. Raises BadInput where there are fewer than two.
    """
    whole = sorted((one for one in passages if len(one.ids) == PASSAGE_TOKENS), key=lambda one: one.domain)
    if len(whole) < 2:
        raise BadInput(
            f"{out.name}: a base file needs two passages of {PASSAGE_TOKENS} tokens, the texts have {len(whole)}; "
            "give longer texts"
        )
    with run_passages(path, whole, device=device, precision=precision, memory=memory, quiet=quiet, top=1) as finished:
        rows = finished.full_rows([range(PASSAGE_TOKENS // 2, PASSAGE_TOKENS - 1)] * len(whole))
        write_base(out, np.stack([one.ids for one in whole]), finished.hparams.vocab, rows)
    return whole


def program_divergence(
    programs: Path, model: Path, base: Path, passages: Sequence[Passage], folder: Path, arguments: Sequence[str]
) -> ProgramDivergence:
    """Run llama-perplexity for the GGUF `model` on the base file of `passages`; its log goes to `folder`.

    A NaN is a figure too: "finite" is 0 then and nothing else is known.
    """
    try:
        printed = run(programs, model, base, folder, arguments)
    except NotFinite:
        return ProgramDivergence({"finite": Figure(0.0)}, {"finite": 0.0}, {})
    figures = {
        "finite": Figure(1.0),
        "kld.mean": _figure(printed.kld_mean),
        "kld.median": Figure(printed.kld_median),
        "kld.p99": Figure(printed.kld_p99),
        "kld.p999": Figure(printed.kld_p999),
        "kld.max": Figure(printed.kld_max),
        "ppl.ratio": _figure(_exponential(printed.ln_ratio)),
        "same_top1": _figure(printed.same_top),
        "rms_delta_p": _figure(printed.rms_delta_p),
    }
    values = {"ppl.reference": printed.ppl_base.value, "ppl.quantized": printed.ppl_q.value}
    values["scored_tokens"] = printed.scored
    return ProgramDivergence(figures, values, _domains(printed, passages))


def _figure(printed: Printed) -> Figure:
    reach = NORMAL_95 * printed.error
    return Figure(printed.value, Interval(printed.value - reach, printed.value + reach, printed.error))


def _exponential(printed: Printed) -> Printed:
    value = float(np.exp(printed.value))
    return Printed(value, value * printed.error)


def _domains(printed: LlamaPerplexityFigures, passages: Sequence[Passage]) -> dict[str, dict[str, float]]:
    """Means over the chunks of a domain: every chunk scores as many tokens."""
    found = {}
    for domain in dict.fromkeys(passage.domain for passage in passages):
        chunks = [chunk for chunk, one in zip(printed.chunks, passages, strict=True) if one.domain == domain]
        found[domain] = {
            "kld.mean": float(np.mean([chunk.kld for chunk in chunks])),
            "ppl.quantized": float(np.exp(np.mean([chunk.surprise for chunk in chunks]))),
        }
    return found
