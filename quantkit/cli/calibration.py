"""`quantkit calibration`: what the corpora are, and the exact token ids that one gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.cli import hub
from quantkit.errors import BadInput

if TYPE_CHECKING:
    from quantkit.calibration.corpora.manifest import Corpus, Source
    from quantkit.calibration.tokens import TokenSet

app = typer.Typer(no_args_is_help=True, help="Calibration corpora: list and show them, build token ids.")

Name = Annotated[
    str, typer.Argument(metavar="NAME|FILE", help="A shipped corpus, or a yaml, txt, jsonl or parquet file.")
]
Json = Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")]


@app.command("list")
def list_corpora(as_json: Json = False) -> None:
    """List the shipped corpora."""
    from quantkit.calibration.corpora.manifest import find_corpus, shipped_corpora

    corpora = [find_corpus(name) for name in shipped_corpora()]
    if as_json:
        typer.echo(json.dumps({"corpora": [_corpus_json(corpus) for corpus in corpora]}))
        return
    table = [["name", "rows", "size", "domains", "licences"]]
    for corpus in corpora:
        facts = _corpus_json(corpus)
        domains = ", ".join(f"{name} {share:g} %" for name, share in facts["domains"].items())
        table.append([corpus.name, f"{facts['rows']:,}", f"{facts['bytes']:,}", domains, _licences(corpus)])
    _print_table(table, right=(1, 2))


@app.command("show")
def show(corpus: Name, as_json: Json = False) -> None:
    """Show what a corpus consists of: shares, rows, licences, origins and hashes."""
    from quantkit.calibration.corpora.manifest import find_corpus

    found = find_corpus(corpus)
    facts = _corpus_json(found)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"{found.name}: {found.description}")
    size = f"{found.samples} samples of" if found.samples else "the whole file in pieces of"
    order = f"seeded order ({found.seed})" if found.shuffled else "file order"
    typer.echo(f"{size} {found.sequence_length} tokens, {order}; {found.path}, sha256 {found.sha256}")
    for source in facts["sources"]:
        rows = f"{source['rows']:,} rows, " if source["rows"] else ""
        typer.echo(
            f"\n{source['name']}: {source['domain']}, {source['share']:g} % of the tokens, {rows}{source['place']}"
        )
        typer.echo(f"  licence {source['licence']}\n  origin  {source['origin']}")
        if source["sha256"]:
            typer.echo(f"  sha256  {source['sha256']}")


@app.command("build")
def build(
    corpus: Name,
    tokenizer: Annotated[Path, typer.Option(metavar="CHECKPOINT", help="Folder or org/name of the checkpoint.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The token file (safetensors) to write.")],
    samples: Annotated[int | None, typer.Option(help="How many sequences (default: what the corpus states).")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens per sequence (default: likewise).")] = None,
    as_json: Json = False,
) -> None:
    """Render, tokenize and pack a corpus; save the ids for --tokens."""
    from quantkit.calibration.corpora.build import describe_rejections, tokens_for
    from quantkit.calibration.tokens import save_tokens

    if out.exists():
        raise BadInput(f"{out}: exists; token files are not replaced, give another name or remove it")
    if not out.parent.is_dir():
        raise BadInput(f"{out.parent}: folder of the output does not exist; create it")
    with hub.opened(tokenizer, quiet=as_json) as folder:
        vocab, context = _model_limits(folder)
        tokens = tokens_for(
            corpus, folder, samples=samples, sequence_length=sequence_length, context=context, vocab=vocab
        )
    save_tokens(out, tokens)
    if as_json:
        sums = {"output": str(out), "tokens_sha256": tokens.sha256()}
        typer.echo(json.dumps(sums | {"provenance": tokens.provenance}))
        return
    _print_build(out, tokens)
    for line in describe_rejections(tokens.provenance):
        typer.echo(f"quantkit: note: {line}", err=True)


def _model_limits(folder: Path) -> tuple[int, int]:
    """Vocabulary and context of the checkpoint's config.json."""
    from quantkit.model.config import hparams_from_config

    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot read ({error.strerror}); --tokenizer names a checkpoint folder") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path}: not a JSON object")
    hparams = hparams_from_config(config, path)
    return hparams.vocab, hparams.context


def _corpus_json(corpus: Corpus) -> dict[str, Any]:
    sources = [_source_json(corpus, source) for source in corpus.sources]
    domains: dict[str, float] = {}
    for source in corpus.sources:
        domains[source.domain] = domains.get(source.domain, 0) + source.share
    return {
        "name": corpus.name,
        "description": corpus.description,
        "path": str(corpus.path),
        "sha256": corpus.sha256,
        "samples": corpus.samples,
        "sequence_length": corpus.sequence_length,
        "rows": sum(source["rows"] or 0 for source in sources),
        "bytes": sum(source["bytes"] or 0 for source in sources),
        "domains": domains,
        "sources": sources,
    }


def _source_json(corpus: Corpus, source: Source) -> dict[str, Any]:
    path = None if source.hub else corpus.path_of(source)
    if path is not None and not path.is_file():
        raise BadInput(f"{path}: missing; {corpus.path.name} names it")
    return {
        "name": source.name,
        "domain": source.domain,
        "share": source.share,
        "rows": source.rows,
        "bytes": path.stat().st_size if path else None,
        "licence": source.licence,
        "origin": source.origin,
        "place": str(path) if path else f"hub {source.hub}, split {source.split}, revision {source.revision}",
        "sha256": source.sha256,
    }


def _licences(corpus: Corpus) -> str:
    named = [part.strip() for source in corpus.sources for part in source.licence.partition(";")[0].split(",")]
    return ", ".join(dict.fromkeys(name.removesuffix(" (per row)") for name in named))


def _print_build(out: Path, tokens: TokenSet) -> None:
    facts = tokens.provenance
    typer.echo(f"{out}: {facts['tokens']:,} tokens in {facts['documents']:,} documents, sha256 {tokens.sha256()}")
    table = [["source", "rows used", "rejected", "tokens", "share", "wanted"]]
    for source in facts["sources"]:
        shares = [f"{source['share_reached']:.1f} %", f"{source['share']:g} %"]
        used = f"{source['rows_used']:,} of {source['rows']:,}"
        table.append([source["name"], used, f"{source['rows_rejected']:,}", f"{source['tokens']:,}", *shares])
    _print_table(table, right=(1, 2, 3, 4, 5))


def _print_table(rows: list[list[str]], right: tuple[int, ...]) -> None:
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    for cells in rows:
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        typer.echo("  ".join(padded).rstrip())
