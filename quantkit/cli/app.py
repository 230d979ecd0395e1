"""`quantkit`: the commands, and how errors become one line and an exit code."""

from __future__ import annotations

import io
import sys
import traceback
from typing import Annotated

import typer

from quantkit import __version__
from quantkit.cli import (
    audit,
    awq,
    calibration,
    gguf,
    gptq,
    imatrix,
    inspect,
    perplexity,
    publish,
    rtn,
    serve,
    verify,
)
from quantkit.errors import QuantkitError

INTERRUPTED = 130

app = typer.Typer(
    name="quantkit",
    help="Quantize MiniMax-M2.7 from its FP8 shards on small machines, expert by expert.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"quantkit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Quantize MiniMax-M2.7 from its FP8 shards on small machines, expert by expert."""


app.add_typer(calibration.app, name="calibration")
app.add_typer(verify.app, name="verify")
app.command("audit")(audit.command)
app.command("awq")(awq.command)
app.command("gguf")(gguf.command)
app.command("gptq")(gptq.command)
app.command("imatrix")(imatrix.command)
app.command("inspect")(inspect.command)
app.command("perplexity")(perplexity.command)
app.command("publish")(publish.command)
app.command("rtn")(rtn.command)
app.command("serve")(serve.command)


def main() -> None:
    """Run the command line; errors a user can act on are one line on stderr, tracebacks need --debug."""
    arguments = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        # File names may hold bytes that are not UTF-8; they leave as they came.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    # Accepted before and after the command's name.
    debug = "--debug" in arguments
    try:
        code = app([argument for argument in arguments if argument != "--debug"], standalone_mode=False)
    except KeyboardInterrupt:
        _fail("interrupted; repeat the same command to go on", INTERRUPTED, debug)
    except QuantkitError as error:
        _fail(str(error), error.exit_code, debug)
    except Exception as error:
        # Usage errors of the command-line library carry their message and exit code.
        usage = getattr(error, "format_message", None)
        if type(error).__name__ == "NoArgsIsHelpError" and usage is not None:
            print(usage(), file=sys.stderr)
            sys.exit(2)
        if usage is not None:
            _fail(usage(), getattr(error, "exit_code", 2), debug)
        _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1, debug)
    if code == INTERRUPTED:
        # typer turns KeyboardInterrupt into this code, without a word.
        _fail("interrupted; repeat the same command to go on", INTERRUPTED, debug)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"quantkit: error: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(code)
