"""`quantkit rtn`: every weight rounded by itself, the quick way without calibration."""

from __future__ import annotations

from quantkit.cli import hub, int4, options


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
    push: options.Push = None,
    public: options.Public = False,
    cache_size: options.CacheSize = hub.CACHE_SIZE,
    memory: options.Memory = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Round the experts of a MiniMax-M2 checkpoint to the nearest INT4 values, for vLLM and SGLang.

    Scales minimize the squared error of the weights; no text is looked at, so awq and gptq give better models. A killed
    run goes on where it was when the same command is given again.
    """
    from quantkit.run.int4.settings import Method, choose_settings

    int4.quantize(
        choose_settings(
            Method.RTN,
            bits=bits,
            group_size=group_size,
            symmetric=symmetric,
            format_name=format_name,
            attention=attention,
        ),
        group_size_given=group_size is not None,
        keep_layers=keep_layers,
        tp=tp,
        memory=memory,
        force=force,
        as_json=as_json,
        places=int4.Places(source, out, push, public, cache_size),
    )
