"""`quantkit gguf`: a checkpoint to quantized GGUFs in one pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.cli import hub, options
from quantkit.cli.calibration_tokens import CalibrationOptions
from quantkit.cli.gguf_result import as_json as result_as_json
from quantkit.cli.gguf_result import print_compensated, print_result
from quantkit.errors import BadInput

if TYPE_CHECKING:
    import torch

    from quantkit.run.gguf.calibration import Calibration
    from quantkit.run.gguf.plan import Target

# Largest size of one file: of those that stay, and of those that are uploaded and deleted as they are finished.
SPLIT, PUSHED_SPLIT = "48G", "5G"
# Parameters that only mean something while calibration tokens pass through the model.
COMPENSATING = (
    "calibration",
    "samples",
    "sequence_length",
    "tokens",
    "min_tokens_per_expert",
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
        typer.Option(
            "--output",
            "-o",
            help="The GGUF to write; of several types a folder or stem.gguf (default: here, named after the source).",
        ),
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
    kquants: Annotated[
        str,
        typer.Option(metavar="own|ggml", help="Whose search makes k-quants; types that are not our own are ggml's."),
    ] = "own",
    compensate: Annotated[
        bool,
        typer.Option("--compensate", help="Choose integers with error feedback, on calibration text, not --imatrix."),
    ] = False,
    calibration: options.Calibration = None,
    samples: options.Samples = None,
    sequence_length: options.SequenceLength = None,
    tokens: options.Tokens = None,
    min_tokens_per_expert: options.MinTokens = 256,
    device: Annotated[
        str,
        typer.Option(metavar="cpu|cuda", help="Where to compute; types without a kernel for cuda stay on the CPU."),
    ] = "cpu",
    precision: options.Precision = "auto",
    split_max_size: Annotated[
        str | None, typer.Option(help="Largest size of one output file (default: 48G, with --push 5G).")
    ] = None,
    overflow_guard: Annotated[
        bool | None,
        typer.Option(
            "--overflow-guard/--no-overflow-guard",
            help="Keep types that overflow in llama.cpp's CUDA kernels off the last layer's down experts (default).",
            show_default=False,
        ),
    ] = None,
    push: options.Push = None,
    public: options.Public = False,
    cache_size: options.CacheSize = hub.CACHE_SIZE,
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

    _check_combination(context, compensate, imatrix)
    chosen = CalibrationOptions(tokens, calibration, samples, sequence_length)
    card = _card(device)
    recipes = recipes_from_options(types, recipe, tensor_type or (), overflow_guard)
    shared: dict[str, Any] = {
        "kquants": kquants,
        "split_max_size": parse_size(_split(split_max_size, push), "--split-max-size"),
        "threads": threads,
        "memory": parse_size(memory, "--memory") if memory is not None else None,
        "force": force,
        "quiet": as_json,
    }
    with hub.opened(source, cache_size, quiet=as_json) as folder:
        targets = name_targets(out, folder, recipes)
        for target in targets:
            refuse_same(target.path, {"--imatrix": imatrix, "--recipe": recipe} | chosen.files)
        with (
            folder_of(targets),
            hub.pushed(push, targets[0].path, folder, public=public, imatrix=imatrix) as finished,
        ):
            shared["finished"] = finished
            if compensate:
                from quantkit.run.gguf.compensate import write_compensated

                text = _calibration(folder, targets, chosen, min_tokens_per_expert, device, precision)
                compensated = write_compensated(folder, targets, text, **shared)
                files = [result_as_json(file.gguf, compensated, file) for file in compensated.files]
            else:
                plain = write_ggufs(folder, targets, imatrix=imatrix, device=card, **shared)
                files = [result_as_json(result) for result in plain]
            if finished is None:
                for target in targets:
                    hub.note_source(folder, target.path.with_name(target.path.stem + hub.SOURCE_RECORD))
    pushed_to = finished.as_json() if finished is not None else {}
    if as_json:
        typer.echo(json.dumps((files[0] if len(files) == 1 else {"files": files}) | pushed_to))
        return
    if compensate:
        print_compensated(compensated, here=finished is None)
    else:
        for result in plain:
            print_result(result, here=finished is None)
    if finished is not None:
        finished.print()


def _card(device: str) -> torch.device | None:
    """The device if it is not the CPU, which does without torch here."""
    if device == "cpu":
        return None
    from quantkit.forward.precision import find_device

    return find_device(device)


def _split(given: str | None, push: str | None) -> str:
    if given is not None:
        return given
    return SPLIT if push is None else PUSHED_SPLIT


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
