"""`quantkit imatrix`: calibration text to an importance matrix, streamed through the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.errors import BadInput

if TYPE_CHECKING:
    from quantkit.calibration.tokens import TokenSet
    from quantkit.run.imatrix import ImatrixResult

DEFAULT_CALIBRATION = "agentic"


def command(
    source: Annotated[Path | None, typer.Argument(help="Folder of the FP8 or BF16 checkpoint.")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="The importance matrix to write.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="A shipped corpus (default: agentic), or a .yaml, .txt, .jsonl or .parquet file."
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Budget in sequences of that length (default: the corpus says).")
    ] = None,
    sequence_length: Annotated[int | None, typer.Option(min=2, help="Tokens per sequence, at most.")] = None,
    min_tokens_per_expert: Annotated[
        int,
        typer.Option(min=0, max=2**32 - 1, help="Every expert's statistics see so many tokens; 0: only routed ones."),
    ] = 256,
    tokens: Annotated[Path | None, typer.Option(help="Token ids saved by `quantkit calibration build`.")] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to compute.")] = "cpu",
    precision: Annotated[
        str, typer.Option(metavar="auto|bfloat16|float32", help="Of the matrix products; sums are always float32.")
    ] = "auto",
    memory: Annotated[str | None, typer.Option(help="Memory for the whole process (default: 60 % of free).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output or unfinished run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Measure what enters every weight of a MiniMax-M2 checkpoint, for better k-quants and for i-quants.

    One layer, and of its experts one per worker, is in memory at a time. A killed run goes on at the layer that was not
    finished when the same command is given again.
    """
    from quantkit.run.imatrix import make_imatrix
    from quantkit.run.output import check_folder, refuse_same
    from quantkit.run.sizes import parse_size

    if source is None:
        raise BadInput("no source given; name the folder of the FP8 or BF16 checkpoint")
    if out is None:
        raise BadInput("no output given; name the file to write with -o imatrix.gguf")
    check_folder(out)
    refuse_same(out, {"--tokens": tokens, "--calibration": Path(calibration) if calibration else None})
    result = make_imatrix(
        source,
        out,
        _tokens(source, tokens, calibration, samples, sequence_length),
        min_tokens=min_tokens_per_expert,
        device=device,
        precision=precision,
        memory=parse_size(memory, "--memory") if memory is not None else None,
        force=force,
        quiet=as_json,
    )
    if as_json:
        typer.echo(json.dumps(_as_json(result)))
    else:
        _print(result)


def _tokens(
    source: Path,
    file: Path | None,
    calibration: str | None,
    samples: int | None,
    sequence_length: int | None,
) -> TokenSet:
    """The token ids of the file, or of the corpus rendered for this checkpoint."""
    from quantkit.calibration.corpora.build import describe_rejections, tokens_for
    from quantkit.calibration.tokens import load_tokens
    from quantkit.checkpoint.index import open_checkpoint
    from quantkit.model.config import hparams_from_config

    hparams = hparams_from_config(open_checkpoint(source).config, source / "config.json")
    if file is not None:
        given = {"--calibration": calibration, "--samples": samples, "--sequence-length": sequence_length}
        for option, value in given.items():
            if value is not None:
                raise BadInput(f"{option} does not go with --tokens, whose file says which tokens to use; drop one")
        return load_tokens(file, vocab=hparams.vocab, context=hparams.context)
    tokens = tokens_for(
        calibration or DEFAULT_CALIBRATION,
        source,
        samples=samples,
        sequence_length=sequence_length,
        context=hparams.context,
        vocab=hparams.vocab,
    )
    for line in describe_rejections(tokens.provenance):
        typer.echo(line, err=True)
    return tokens


def _as_json(result: ImatrixResult) -> dict[str, Any]:
    return {
        "output": str(result.output),
        "report": str(result.report),
        "picture": str(result.picture),
        "tokens": result.tokens,
        "documents": result.documents,
        "tokens_sha256": result.tokens_sha256,
        "precision": result.precision,
        "seconds": round(result.seconds, 3),
        "peak_rss_bytes": result.peak_rss,
        "resumed_layers": result.resumed_layers,
        "coverage": {key: value for key, value in result.coverage.items() if key != "layers"},
        "overflow_risks": result.overflow_risks,
        "excluded_tokens": [
            {"layer": layer, "expert": expert, "tokens": count} for (layer, expert), count in result.excluded.items()
        ],
        "calibration": result.calibration,
    }


def _print(result: ImatrixResult) -> None:
    from quantkit.run.sizes import format_size

    coverage = result.coverage
    floor = coverage["min_tokens_per_expert"]
    if result.resumed_layers:
        typer.echo(f"resumed: {result.resumed_layers} layers were on disk")
    typer.echo(
        f"{result.tokens:,} tokens in {result.documents} documents, {result.precision}; tokens per expert: "
        f"{coverage['routed_min']} to {coverage['routed_max']}, median {coverage['routed_median']:.0f}"
    )
    if coverage["experts_below_floor"]:
        typer.echo(
            f"{coverage['experts_below_floor']} of {coverage['experts']} experts were routed fewer than {floor} tokens "
            f"and topped up; {coverage['experts_still_below_floor']} are still below"
            + ("; more --samples would help" if coverage["experts_still_below_floor"] else "")
        )
    if coverage["experts_without_tokens"]:
        typer.echo(
            f"{coverage['experts_without_tokens']} experts saw no token at all: their layer's mean will stand in"
        )
    for (layer, expert), count in result.excluded.items():
        place = f"layer {layer}" if expert is None else f"layer {layer}, expert {expert}"
        typer.echo(f"excluded: {count} tokens became NaN or infinite in {place}")
    for risk in result.overflow_risks:
        typer.echo(
            f"overflow {'expected' if risk['overflows'] else 'possible'}: {risk['tensor']}, experts {risk['experts']}, "
            f"largest block sum {risk['largest_block_sum']:.0f} of 65504"
        )
    typer.echo(f"{result.seconds:.1f} s, peak memory {format_size(result.peak_rss)}")
    for path in (result.output, result.report, result.picture):
        typer.echo(path)
