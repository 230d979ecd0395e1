"""`quantkit serve`: the right command for a runtime, printed or run."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.errors import BadInput, QuantkitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quantkit.verify.servers.serving import Serving


def command(
    path: Annotated[Path | None, typer.Argument(help="Folder of a checkpoint, or a GGUF (any part).")] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="vllm|sglang|llama.cpp|ollama|ktransformers",
            help="What to serve with (default: llama.cpp for a GGUF, else vllm).",
        ),
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="4xH100", help="GPUs to serve on (default: all that can be used here).")
    ] = None,
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the command and the files for containers, run nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object, run nothing.")] = False,
) -> None:
    """Serve a model with the parsers, the precision and the parallelism that MiniMax-M2 needs."""
    from quantkit.verify.servers.serving import plan_serving

    if path is None:
        raise BadInput("no model given; name the folder of a checkpoint, or a GGUF")
    serving = plan_serving(path, engine, gpus, to_run=not (print_only or as_json))
    if as_json:
        typer.echo(json.dumps(asdict(serving)))
    elif print_only:
        _print(serving)
    else:
        _run(serving)


def _print(serving: Serving) -> None:
    """Every part can be copied into a terminal or a file; notes are comments."""
    for note in serving.notes:
        typer.echo(f"# {note}")
    if serving.modelfile is not None:
        typer.echo(f"\n# Modelfile\n{serving.modelfile}", nl=False)
    typer.echo("\n# command")
    for words in serving.before:
        typer.echo(shlex.join(words))
    variables = [f"{name}={shlex.quote(value)}" for name, value in serving.environment.items()]
    typer.echo(" ".join([*variables, _lines(serving.command)]))
    if serving.compose is not None:
        typer.echo(f"\n# docker-compose.yaml\n{serving.compose}", nl=False)


def _lines(words: Sequence[str]) -> str:
    """The command with every option on a line of its own."""
    text = ""
    for word in words:
        starts_line = word.startswith("--")
        text += (" \\\n    " if starts_line else " " if text else "") + shlex.quote(word)
    return text


def _run(serving: Serving) -> None:
    """Become the server: signals and the terminal are its own."""
    for note in serving.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(_lines(serving.command), err=True)
    try:
        os.execvpe(serving.command[0], serving.command, {**os.environ, **serving.environment})
    except OSError as error:
        raise QuantkitError(f"{serving.command[0]}: cannot be started ({error.strerror})") from None
