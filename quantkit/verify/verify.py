"""The story of a verification: capture the reference, capture the quantized model, compare, judge, report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from quantkit.errors import BadInput
from quantkit.verify.capture import STREAMED, Means, capture_model, check_engine, engine_for
from quantkit.verify.capture_file import Capture, is_capture, open_capture
from quantkit.verify.compare import compare_captures, pairwise
from quantkit.verify.divergence.layers import layer_figures
from quantkit.verify.divergence.program import ProgramDivergence, has_program, program_divergence, write_base_of
from quantkit.verify.gate import Gate
from quantkit.verify.models import ModelFacts, check_same_model, describe_model, served_elsewhere
from quantkit.verify.outcome import build_report
from quantkit.verify.questions import ask_what, questions_from_json
from quantkit.verify.records import Passage
from quantkit.verify.report.write import write_report
from quantkit.verify.tokenizers import (
    check_folder_tokenizer,
    check_gguf_vocabulary,
    read_vocabulary,
    tokenizer_folder,
)

REFERENCE_NAME, QUANTIZED_NAME = "reference.capture", "quantized.capture"
BASE_NAME = "reference.logits"


@dataclass(frozen=True)
class Wanted:
    """What a person asked for. `texts` and `requests` empty: the shipped ones; ["none"]: none of them."""

    texts: Sequence[str]
    requests: Sequence[str]
    loops: int
    max_tokens: int
    tokenizer: Path | None
    force: bool


def capture_reference(
    path: Path, out: Path, wanted: Wanted, engine: str | None, means: Means, base: Path | None = None
) -> None:
    """Measure the model at `path` as a reference and write its capture `out`; a rerun goes on.

    `base`: also write llama-perplexity's base file of the same texts, from the streamed pass.
    """
    facts = _facts(path, means)
    engine = engine or ("openai" if means.server else engine_for(facts))
    if means.server is None:
        check_engine(engine, facts, path)
    _capture_reference(path, facts, out, wanted, replace(means, engine=engine))
    if base is not None:
        with open_capture(out) as capture:
            passages = questions_from_json(capture.about("questions")).passages
        _write_base(path, passages, base, means)


def capture_quantized(path: Path, reference: Path, out: Path, wanted: Wanted, engine: str | None, means: Means) -> None:
    """Measure the model at `path` on the questions of the capture `reference` and write its capture `out`."""
    if not is_capture(reference):
        raise BadInput(f"--reference {reference}: not a capture; make one of the original first")
    facts = _facts(path, means)
    with ExitStack() as stack:
        mine, means = _reference(path, facts, reference, out.parent, wanted, engine, means, stack)
        _quantized(path, facts, mine, out, wanted, means, stack)


def verify(
    quantized: Path,
    reference: Path,
    folder: Path,
    gate: Gate,
    wanted: Wanted,
    engine: str | None,
    means: Means,
    others: Sequence[Path] = (),
) -> dict[str, Any]:
    """Hold `quantized` (a model or its capture) against `reference` (likewise) and write the report into `folder`.

    Models are captured first, into `folder`; a rerun asks only what is missing. `others` are captures of the quantized
    model on other engines, compared with this one. Returns the report.
    """
    with ExitStack() as stack:
        if is_capture(quantized):
            if not is_capture(reference):
                raise BadInput(f"--reference {reference}: not a capture, but {quantized} is one; give a capture")
            theirs = stack.enter_context(open_capture(quantized))
            mine = stack.enter_context(open_capture(reference))
            layers, program = None, None
        else:
            facts = _facts(quantized, means)
            mine, means = _reference(quantized, facts, reference, folder, wanted, engine, means, stack)
            theirs = _quantized(quantized, facts, mine, folder / QUANTIZED_NAME, wanted, means, stack)
            layers = _layers(quantized, reference, mine, means)
            program = _by_program(quantized, reference, mine, folder, means)
        captures = [theirs, *(stack.enter_context(open_capture(other)) for other in others)]
        engines = [
            pair for n, left in enumerate(captures) for right in captures[n + 1 :] if (pair := pairwise(left, right))
        ]
        compared = compare_captures(mine, theirs)
        if program is not None:
            compared.add_program(program)
        report = build_report(
            mine,
            theirs,
            compared,
            gate,
            layers=layers,
            engines=engines,
            notes=_notes(mine, theirs),
        )
    write_report(folder, report)
    return report


def _facts(path: Path, means: Means) -> ModelFacts:
    if means.server is not None and not path.exists():
        return served_elsewhere(str(path))
    return describe_model(path)


def _reference(
    quantized: Path,
    facts: ModelFacts,
    reference: Path,
    folder: Path,
    wanted: Wanted,
    engine: str | None,
    means: Means,
    stack: ExitStack,
) -> tuple[Capture, Means]:
    """The reference's capture, made if need be, and the means with the engine that both models are measured on."""
    if is_capture(reference):
        mine = stack.enter_context(open_capture(reference))
        there = mine.about("identity")["model"]
        check_same_model(there["dimensions"], facts, str(reference))
        engine = engine or engine_for(facts)
        if means.server is None:
            check_engine(engine, facts, quantized)
        return mine, replace(means, engine=engine)
    if means.server is not None:
        raise BadInput(
            f"--reference {reference}: with --server only one model is served; capture the original first "
            "(`quantkit verify capture MODEL -o FILE`, there too with --server) and give the file"
        )
    original = describe_model(reference)
    check_same_model(original.dimensions, facts, str(reference))
    engine = engine or engine_for(facts)
    check_engine(engine, facts, quantized)
    by_program = engine == "llama.cpp" and has_program(means.programs)
    means = replace(means, engine=engine, by_program=by_program)
    converts = engine == "llama.cpp" and not original.is_gguf
    if not converts:
        check_engine(engine, original, reference)
    _capture_reference(reference, original, folder / REFERENCE_NAME, wanted, means, converts=converts)
    return stack.enter_context(open_capture(folder / REFERENCE_NAME)), means


@contextmanager
def _as_gguf(reference: Path, out: Path, means: Means) -> Iterator[Path]:
    """The checkpoint as a BF16 GGUF, for llama.cpp; gone when it was served, kept for a rerun when that failed."""
    from quantkit.recipe.recipe import recipe_from_options
    from quantkit.run.gguf.convert import write_gguf

    if not out.exists():
        recipe = recipe_from_options("bf16")
        try:
            write_gguf(reference, out, recipe, split_max_size=1 << 62, memory=means.memory, quiet=means.quiet)
        except BadInput as error:
            raise BadInput(
                f"{error}; for llama.cpp the reference becomes a BF16 GGUF: else give a Q8_0 GGUF of it, or the "
                "capture of it on another engine, as --reference"
            ) from error
    yield out
    out.unlink()


def _capture_reference(
    path: Path, facts: ModelFacts, out: Path, wanted: Wanted, means: Means, *, converts: bool = False
) -> None:
    """`converts`: llama.cpp serves a GGUF made of the checkpoint, so that both models run on the same runtime."""
    tokenizer = tokenizer_folder(path if path.exists() else None, wanted.tokenizer)
    questions = ask_what(
        tokenizer,
        facts,
        texts=wanted.texts,
        requests=["none"] if means.engine == STREAMED else wanted.requests,
        loops=wanted.loops,
        max_tokens=wanted.max_tokens,
    )
    data, vocabulary = read_vocabulary(tokenizer)
    extra: dict[str, Any] = {"tokenizer": data, "vocabulary": vocabulary}
    extra |= {"served_as": "a BF16 GGUF made of it"} if converts else {}
    # Named after the weights: a rerun with another reference does not serve this one.
    gguf = out.with_name(f"{facts.weights_fingerprint[:12]}-BF16.gguf")
    capture_model(
        path if path.exists() else None,
        facts,
        out,
        questions,
        means,
        extra=extra,
        converted=partial(_as_gguf, path, gguf, means) if converts else None,
        force=wanted.force,
    )


def _quantized(
    path: Path, facts: ModelFacts, mine: Capture, out: Path, wanted: Wanted, means: Means, stack: ExitStack
) -> Capture:
    questions = questions_from_json(mine.about("questions"))
    if path.is_dir() and facts.tokenizer_sha256 is not None:
        check_folder_tokenizer(path, questions.probes, mine.about("vocabulary"))
    elif facts.is_gguf:
        check_gguf_vocabulary(path, mine.about("vocabulary"))
    known = path if path.exists() else None
    capture_model(known, facts, out, questions, means, history=mine, force=wanted.force)
    return stack.enter_context(open_capture(out))


def _layers(quantized: Path, reference: Path, mine: Capture, means: Means) -> dict[str, Any] | None:
    """The comparison layer by layer, where both models' weights are here."""
    passages = questions_from_json(mine.about("questions")).passages
    if is_capture(reference) or not quantized.exists() or not reference.exists() or not passages:
        return None
    return layer_figures(
        reference,
        quantized,
        passages,
        device=means.device,
        memory=means.memory,
        quiet=means.quiet,
    )


def _by_program(
    quantized: Path, reference: Path, mine: Capture, folder: Path, means: Means
) -> ProgramDivergence | None:
    """Divergence by llama-perplexity, where it is among the programs and the original is here."""
    if not means.by_program:
        return None
    assert means.programs is not None
    passages = questions_from_json(mine.about("questions")).passages
    base = folder / BASE_NAME
    chosen = _write_base(reference, passages, base, means)
    return program_divergence(means.programs, quantized, base, chosen, folder / "llama-perplexity", means.arguments)


def _write_base(path: Path, passages: Sequence[Passage], base: Path, means: Means) -> list[Passage]:
    return write_base_of(
        path,
        passages,
        base,
        device=means.device,
        precision=means.precision,
        memory=means.memory,
        quiet=means.quiet,
    )


def _notes(mine: Capture, theirs: Capture) -> list[str]:
    """What a reader must know to read the figures."""
    reference, quantized = (capture.about("server") or {} for capture in (mine, theirs))
    notes = []
    if reference.get("engine") != quantized.get("engine"):
        notes.append(
            f"the reference ran on {reference.get('engine')}, the quantized model on {quantized.get('engine')}: "
            "kernels and parsers differ too"
        )
    elif reference.get("version") != quantized.get("version"):
        notes.append("the two models ran on different versions of the same runtime")
    left, right = (capture.about("identity")["model"]["template_sha256"] for capture in (mine, theirs))
    if left and right and left != right:
        notes.append("the two models have different chat templates")
    if mine.about("served_as"):
        notes.append(f"the reference was served as {mine.about('served_as')}")
    return notes
