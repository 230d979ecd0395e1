"""`quantkit perplexity`: how well a checkpoint predicts a text, without ever loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli import hub, options
from quantkit.errors import BadInput

DEFAULT_LENGTH = 512


def command(
    source: options.Source = None,
    text: Annotated[Path | None, typer.Option(help="Text to score: .txt, or .jsonl of texts or chats.")] = None,
    sequence_length: Annotated[int, typer.Option(min=2, help="The text is scored in pieces of so many tokens.")] = (
        DEFAULT_LENGTH
    ),
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to compute.")] = "cpu",
    precision: Annotated[
        str, typer.Option(metavar="float32|bfloat16|auto", help="Of the matrix products.")
    ] = "float32",
    cache_size: options.CacheSize = hub.CACHE_SIZE,
    memory: Annotated[str | None, typer.Option(help="Memory for the whole process (default: 60 % of free).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Perplexity of a MiniMax-M2 checkpoint, one layer and a few experts in memory at a time."""
    from quantkit.calibration.corpora.build import describe_rejections, tokens_of_file
    from quantkit.checkpoint.index import open_checkpoint
    from quantkit.model.config import hparams_from_config
    from quantkit.run.perplexity import measure_perplexity
    from quantkit.run.sizes import format_size, parse_size

    if text is None:
        raise BadInput("no text given; name the file to score with --text FILE")
    if not text.is_file():
        raise BadInput(f"{text}: no such file; --text takes a .txt or .jsonl file")
    with hub.opened(source, cache_size, quiet=as_json) as folder:
        hparams = hparams_from_config(open_checkpoint(folder).config, folder / "config.json")
        tokens = tokens_of_file(
            text, folder, sequence_length=sequence_length, context=hparams.context, vocab=hparams.vocab
        )
        for line in describe_rejections(tokens.provenance):
            typer.echo(line, err=True)
        result = measure_perplexity(
            folder,
            tokens,
            device=device,
            precision=precision,
            memory=parse_size(memory, "--memory") if memory is not None else None,
            quiet=as_json,
        )
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "perplexity": result.perplexity,
                    "standard_error": result.standard_error,
                    "scored_tokens": result.scored,
                    "tokens": result.tokens,
                    "documents": result.documents,
                    "sequence_length": result.sequence_length,
                    "tokens_sha256": result.tokens_sha256,
                    "precision": result.precision,
                    "seconds": round(result.seconds, 3),
                    "peak_rss_bytes": result.peak_rss,
                }
            )
        )
    else:
        typer.echo(f"perplexity {result.perplexity:.4f} ± {result.standard_error:.4f} over {result.scored:,} tokens")
        typer.echo(
            f"{result.documents} pieces of up to {result.sequence_length} tokens, {result.precision}, "
            f"{result.seconds:.1f} s, peak memory {format_size(result.peak_rss)}"
        )
