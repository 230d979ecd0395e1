"""`quantkit verify`: is a quantized model still the model? `verify capture` measures one model into a file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from quantkit.cli import hub
from quantkit.cli.options import Device, Force, Json, Memory
from quantkit.errors import BadInput

if TYPE_CHECKING:
    from quantkit.verify.capture import Means
    from quantkit.verify.verify import Wanted

COMPARE = "compare"
DEFAULT_LOOPS = 5
DEFAULT_MAX_TOKENS = 4096


class _CompareByDefault(TyperGroup):
    """`verify MODEL …` is `verify compare MODEL …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's name before arguments that begin with something else."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [COMPARE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_CompareByDefault,
    no_args_is_help=True,
    help="Verify a quantized model against its original: `quantkit verify QUANTIZED --reference SOURCE -o DIR`.",
)

Engine = Annotated[
    str | None,
    typer.Option(metavar="vllm|llama.cpp|sglang|streamed", help="Where the models run (default: by their format)."),
]
ServerUrl = Annotated[str | None, typer.Option("--server", metavar="URL", help="A server that runs already.")]
Text = Annotated[
    list[str] | None, typer.Option(metavar="FILE", help="Text to score, .txt or .jsonl; `none` for none (repeatable).")
]
Requests = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE|bfcl:…", help="Requests to answer, .jsonl, or bfcl:simple_python,…; `none` for none."),
]
Loops = Annotated[
    int | None,
    typer.Option(min=0, help=f"Rounds of recommended sampling, beside the greedy one (default: {DEFAULT_LOOPS})."),
]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help=f"Answers are cut after so many tokens (default: {DEFAULT_MAX_TOKENS}).")
]
Tokenizer = Annotated[
    Path | None, typer.Option(metavar="CHECKPOINT", help="Folder of the tokenizer, where the reference has none.")
]
Programs = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH", help="vLLM's or SGLang's environment, or llama.cpp's folder of programs (default: embedded)."
    ),
]
ServerArguments = Annotated[
    str, typer.Option("--server-args", metavar="TEXT", help="Further arguments for the server, as on its command line.")
]
Precision = Annotated[str, typer.Option(metavar="float32|bfloat16|auto", help="Of the streamed engine's products.")]


@app.command(COMPARE)
def compare(
    quantized: Annotated[
        list[Path] | None,
        typer.Argument(metavar="QUANTIZED", help="A model or its capture; further captures are compared with it."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="SOURCE|FILE", help="The original: its folder, a GGUF, or its capture.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the report.")] = None,
    engine: Engine = None,
    server: ServerUrl = None,
    text: Text = None,
    requests: Requests = None,
    gate: Annotated[str, typer.Option(metavar="NAME|FILE", help="Thresholds: default, strict or a .yaml.")] = "default",
    loops: Loops = None,
    max_tokens: MaxTokens = None,
    tokenizer: Tokenizer = None,
    programs: Programs = None,
    server_args: ServerArguments = "",
    device: Device = "cpu",
    precision: Precision = "float32",
    memory: Memory = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Hold a quantized model against its original; exit code 0 PASS, 3 FAIL, 4 INCONCLUSIVE."""
    from quantkit.verify.gate import Verdict, load_gate
    from quantkit.verify.outcome import EXIT_CODES
    from quantkit.verify.verify import verify

    if not quantized:
        raise BadInput("no model given; name the folder or GGUF of the quantized model, or its capture")
    if reference is None:
        raise BadInput("no reference given; name the original, or its capture, with --reference")
    if out is None:
        raise BadInput("no output given; name the folder of the report with -o DIR")
    if out.exists() and not out.is_dir():
        raise BadInput(f"-o {out}: a file; name a folder")
    with _streamed(engine, quantized[0], as_json) as model, _streamed(engine, reference, as_json) as original:
        report = verify(
            model,
            original,
            out,
            load_gate(gate),
            _wanted(text, requests, loops, max_tokens, tokenizer, force, reference),
            engine,
            _means(engine, server, programs, server_args, device, precision, memory, as_json),
            quantized[1:],
        )
    if as_json:
        typer.echo((out / "report.json").read_text(encoding="utf-8").rstrip())
    else:
        _print(report, out)
    raise typer.Exit(EXIT_CODES[Verdict(report["verdict"])])


@app.command("capture")
def capture(
    model: Annotated[
        Path | None, typer.Argument(help="The original: its folder, a GGUF, or a served one's name.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="The capture to write.")] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="For a quantized model: the capture of its original, whose questions it gets."
        ),
    ] = None,
    logits_base: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write llama-perplexity's base file of the same texts.")
    ] = None,
    engine: Engine = None,
    server: ServerUrl = None,
    text: Text = None,
    requests: Requests = None,
    loops: Loops = None,
    max_tokens: MaxTokens = None,
    tokenizer: Tokenizer = None,
    programs: Programs = None,
    server_args: ServerArguments = "",
    device: Device = "cpu",
    precision: Precision = "float32",
    memory: Memory = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure one model into a file, to be compared anywhere later."""
    from quantkit.verify.verify import capture_quantized, capture_reference

    if model is None:
        raise BadInput("no model given; name the folder or GGUF to measure")
    if out is None:
        raise BadInput("no output given; name the capture to write with -o FILE")
    wanted = _wanted(text, requests, loops, max_tokens, tokenizer, force, reference)
    means = _means(engine, server, programs, server_args, device, precision, memory, as_json)
    if reference is not None and logits_base is not None:
        raise BadInput("--logits-base: belongs to a reference; leave --reference out")
    with _streamed(engine, model, as_json) as place:
        if reference is not None:
            capture_quantized(place, reference, out, wanted, engine, means)
        else:
            capture_reference(place, out, wanted, engine, means, logits_base)
    if as_json:
        typer.echo(json.dumps({"output": str(out), "bytes": out.stat().st_size}))
    else:
        how = f"{out} --reference {reference}" if reference is not None else f"MODEL --reference {out}"
        typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB; compare with `quantkit verify {how} -o DIR`")


@contextmanager
def _streamed(engine: str | None, model: Path, quiet: bool) -> Iterator[Path]:
    """The folder of a model: servers want it on the disk, the streamed engine takes a repo of the Hub as well."""
    if engine != "streamed":
        yield model
        return
    with hub.opened(model, quiet=quiet) as folder:
        yield folder


def _wanted(
    text: list[str] | None,
    requests: list[str] | None,
    loops: int | None,
    max_tokens: int | None,
    tokenizer: Path | None,
    force: bool,
    reference: Path | None,
) -> Wanted:
    from quantkit.verify.capture_file import is_capture
    from quantkit.verify.verify import Wanted

    asked = {"--text": text, "--requests": requests, "--loops": loops, "--max-tokens": max_tokens}
    given = [option for option, value in asked.items() if value is not None and value != []]
    if given and reference is not None and is_capture(reference):
        raise BadInput(
            f"{', '.join(given)}: {reference} says what is asked; leave them out, or capture the original with them"
        )
    loops = DEFAULT_LOOPS if loops is None else loops
    return Wanted(text or (), requests or (), loops, max_tokens or DEFAULT_MAX_TOKENS, tokenizer, force)


def _means(
    engine: str | None,
    server: str | None,
    programs: Path | None,
    server_args: str,
    device: str,
    precision: str,
    memory: str | None,
    quiet: bool,
) -> Means:
    from quantkit.run.sizes import parse_size
    from quantkit.verify.capture import ENGINES, Means

    if engine is not None and server is not None:
        raise BadInput("--engine and --server exclude each other: what answers at a URL is found out")
    if engine is not None and engine not in ENGINES:
        raise BadInput(f"--engine {engine}: unknown; choose one of {', '.join(ENGINES)}")
    try:
        arguments = tuple(shlex.split(server_args))
    except ValueError as error:
        raise BadInput(f"--server-args {server_args!r}: {error}") from None
    size = parse_size(memory, "--memory") if memory is not None else None
    return Means(engine or "", server, programs, arguments, device, precision, size, quiet)


def _print(report: dict[str, Any], out: Path) -> None:
    typer.echo(f"{report['verdict']}: {'; '.join(report['reasons'])}")
    for check in report["gate"]["checks"]:
        if check["verdict"] != "SKIPPED":
            typer.echo(f"  {check['verdict']:<12} {check['metric']:<34} {check['why']}")
    for line in report["not_measured"]:
        typer.echo(f"  not measured: {line}")
    typer.echo(f"{out / 'report.html'}")
