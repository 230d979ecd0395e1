"""`quantkit gguf`: a checkpoint to quantized GGUFs in one pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.cli import options
from quantkit.cli.calibration_tokens import CalibrationOptions
from quantkit.cli.gguf_result import as_json as result_as_json
from quantkit.cli.gguf_result import print_compensated, print_result
from quantkit.errors import BadInput

if TYPE_CHECKING:
    from quantkit.run.gguf.calibration import Calibration
    from quantkit.run.gguf.plan import Target

# Parameters that only mean something while calibration tokens pass through the model.
COMPENSATING = (
    "calibration",
    "samples",
    "sequence_length",
    "tokens",
    "min_tokens_per_expert",
    "device",
    "precision",
)


def command(
    context: typer.Context,
    types: Annotated[
        str, typer.Argument(metavar="TYPE[,TYPE...]", help="A mix of llama-quantize, such as q4_k_m, or several.")
    ],
    source: options.Source = None,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The GGUF to write; of several types a folder, or a stem.gguf."),
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=TYPE", help="Type of the tensors whose GGUF name matches; repeatable."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe with rules per tensor.")] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(help="Importance matrix of this model, GGUF or .dat; IQ1, IQ2, IQ3_XXS, IQ3_XS, Q2_K_S need one."),
    ] = None,
    compensate: Annotated[
        bool,
        typer.Option("--compensate", help="Choose integers with error feedback, on calibration text, not --imatrix."),
    ] = False,
    calibration: options.Calibration = None,
    samples: options.Samples = None,
    sequence_length: options.SequenceLength = None,
    tokens: options.Tokens = None,
    min_tokens_per_expert: options.MinTokens = 256,
    device: options.Device = "cpu",
    precision: options.Precision = "auto",
    split_max_size: Annotated[str, typer.Option(help="Largest size of one output file.")] = "48G",
    overflow_guard: Annotated[
        bool | None,
        typer.Option(
            "--overflow-guard/--no-overflow-guard",
            help="Keep types that overflow in llama.cpp's CUDA kernels off the last layer's down experts (default).",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Worker threads (default: all processors).")] = None,
    memory: options.Memory = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Quantize a MiniMax-M2 checkpoint to GGUF, straight from its FP8 or BF16 shards.

    A killed run goes on where it was when the same command is given again.
    """
    from quantkit.run.gguf.convert import write_ggufs
    from quantkit.run.gguf.targets import folder_of, name_targets, recipes_from_options
    from quantkit.run.output import refuse_same
    from quantkit.run.sizes import parse_size

    if source is None:
        raise BadInput("no source given; name the folder of the FP8 or BF16 checkpoint")
    if out is None:
        raise BadInput("no output given; name the file to write with -o OUT.gguf")
    _check_combination(context, compensate, imatrix)
    chosen = CalibrationOptions(tokens, calibration, samples, sequence_length)
    targets = name_targets(out, source, recipes_from_options(types, recipe, tensor_type or (), overflow_guard))
    for target in targets:
        refuse_same(target.path, {"--imatrix": imatrix, "--recipe": recipe} | chosen.files)
    shared: dict[str, Any] = {
        "split_max_size": parse_size(split_max_size, "--split-max-size"),
        "threads": threads,
        "memory": parse_size(memory, "--memory") if memory is not None else None,
        "force": force,
        "quiet": as_json,
    }
    with folder_of(targets):
        if compensate:
            from quantkit.run.gguf.compensate import write_compensated

            text = _calibration(source, targets, chosen, min_tokens_per_expert, device, precision)
            compensated = write_compensated(source, targets, text, **shared)
            files = [result_as_json(file.gguf, compensated, file) for file in compensated.files]
        else:
            plain = write_ggufs(source, targets, imatrix=imatrix, **shared)
            files = [result_as_json(result) for result in plain]
    if as_json:
        typer.echo(json.dumps(files[0] if len(files) == 1 else {"files": files}))
    elif compensate:
        print_compensated(compensated)
    else:
        for result in plain:
            print_result(result)


def _check_combination(context: typer.Context, compensate: bool, imatrix: Path | None) -> None:
    """Refuse options that go with --compensate alone, or not with it."""
    if compensate:
        if imatrix is not None:
            raise BadInput(f"--imatrix {imatrix}: does not go with --compensate, which measures by itself; drop one")
        return
    for name in COMPENSATING:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise BadInput(f"--{name.replace('_', '-')}: is for --compensate, which reads text; add that or drop it")


def _calibration(
    source: Path,
    targets: Sequence[Target],
    chosen: CalibrationOptions,
    min_tokens: int,
    device: str,
    precision: str,
) -> Calibration:
    """Read the text, once all that is cheaper to check holds."""
    from quantkit.checkpoint.index import open_checkpoint
    from quantkit.model.tensors import build_model
    from quantkit.run.calibrated.tokens import check_tokens
    from quantkit.run.gguf.calibration import Calibration
    from quantkit.run.output import check_folder

    for target in targets:
        check_folder(target.path)
    hparams = build_model(open_checkpoint(source)).hparams
    tokens = chosen.load(source, hparams)
    check_tokens(len(tokens.ids), hparams, chosen.origin)
    return Calibration(tokens, min_tokens, device, precision)
