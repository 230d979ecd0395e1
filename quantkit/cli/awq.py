"""`quantkit awq`: scales moved between matrices before rounding, chosen by the output error on calibration text."""

from __future__ import annotations

from typing import Annotated

import typer

from quantkit.cli import hub, int4, options
from quantkit.cli.calibration_tokens import CalibrationOptions


def command(
    source: options.Source = None,
    out: int4.Output = None,
    bits: int4.Bits = 4,
    group_size: int4.GroupSize = None,
    symmetric: int4.Symmetric = None,
    format_name: int4.FormatName = None,
    attention: int4.AttentionName = "bf16",
    keep_layers: int4.KeepLayers = None,
    tp: int4.TensorParallel = None,
    then_gptq: Annotated[
        bool, typer.Option("--then-gptq", help="Solve the scaled weights with GPTQ instead of rounding them.")
    ] = False,
    calibration: options.Calibration = None,
    samples: options.Samples = None,
    sequence_length: options.SequenceLength = None,
    tokens: options.Tokens = None,
    min_tokens_per_expert: options.MinTokens = 256,
    device: options.Device = "cpu",
    precision: options.Precision = "auto",
    push: options.Push = None,
    public: options.Public = False,
    cache_size: options.CacheSize = hub.CACHE_SIZE,
    memory: options.Memory = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Quantize the experts of a MiniMax-M2 checkpoint with AWQ, for vLLM and SGLang.

    In AWQ's own format with zero points unless told otherwise. A killed run goes on at the layer that was not finished
    when the same command is given again.
    """
    from quantkit.run.int4.settings import Method, choose_settings

    int4.quantize(
        choose_settings(
            Method.AWQ,
            bits=bits,
            group_size=group_size,
            symmetric=symmetric,
            format_name=format_name,
            attention=attention,
            then_gptq=then_gptq,
            min_tokens=min_tokens_per_expert,
        ),
        group_size_given=group_size is not None,
        keep_layers=keep_layers,
        tp=tp,
        memory=memory,
        force=force,
        as_json=as_json,
        places=int4.Places(source, out, push, public, cache_size),
        calibration=CalibrationOptions(tokens, calibration, samples, sequence_length),
        device=device,
        precision=precision,
    )
