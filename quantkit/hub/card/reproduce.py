"""The command that makes a quantization again, put together from what the files say of its settings."""

from __future__ import annotations

import shlex

from quantkit.errors import BadInput
from quantkit.hub.address import SCHEME
from quantkit.hub.card.facts import CUDA, GGML, INT4, CalibrationFacts, QuantFacts

# How the label of a method in quantkit.json begins -> command, its default format.
_METHODS = (("AWQ", "awq", "awq"), ("GPTQ", "gptq", "gptq"), ("round", "rtn", "compressed-tensors"))
_THEN_GPTQ = "then GPTQ"
_DEFAULT_TOKENS_PER_EXPERT = 256


def reproducing_command(facts: QuantFacts) -> str:
    """The command line; the source is the repo at its commit where it is known, else the model's name."""
    if facts.command is not None:
        return facts.command
    words = _int4(facts) if facts.kind == INT4 else _gguf(facts)
    return shlex.join(["quantkit", *words])


def _source(facts: QuantFacts) -> str:
    if facts.source is None:
        return facts.model
    at = facts.source.commit or facts.source.revision
    return f"{SCHEME}{facts.source.repo}" + (f"@{at}" if at else "")


def _int4(facts: QuantFacts) -> list[str]:
    settings = facts.settings
    known = [(name, default) for start, name, default in _METHODS if facts.method.startswith(start)]
    if not known:
        raise BadInput(f"{facts.name}: method {facts.method!r} is none of quantkit's; quantize it again")
    method, default = known[0]
    words = [method, _source(facts), "-o", facts.name]
    group = settings["group_size"]
    words += ["--bits", str(settings["bits"]), "--group-size", "-1" if group == "row" else str(group)]
    words += [] if settings["format"] == default else ["--format", str(settings["format"])]
    words += ["--attention", str(settings["attention"])]
    if settings["kept_layers"]:
        words += ["--keep-layers", ",".join(map(str, settings["kept_layers"]))]
    if method != "gptq":
        words.append("--symmetric" if settings["symmetric"] else "--asymmetric")
    words += ["--then-gptq"] if _THEN_GPTQ in facts.method else []
    return words + _calibration(facts.calibration)


def _gguf(facts: QuantFacts) -> list[str]:
    settings = facts.settings
    mix = str(settings.get("base", facts.scheme))
    led_by = str(settings.get("led_by", mix))
    types = mix if led_by == mix else f"{led_by},{mix}"
    # Several types make several files out of one name.
    out = f"{facts.model}-{facts.name}.gguf" if led_by == mix else f"{facts.model}.gguf"
    words = ["gguf", types.lower(), _source(facts), "-o", out]
    if facts.imatrix is not None:
        words += ["--imatrix", facts.imatrix.file]
    for rule in settings.get("tensors", []):
        words += ["--tensor-type", f"{rule['match']}={rule['type']}"]
    words += [] if settings.get("overflow_guard", True) else ["--no-overflow-guard"]
    quantizer = facts.versions.get("quantizer", "")
    words += ["--kquants", "ggml"] if quantizer.startswith(GGML) else []
    words += ["--device", "cuda"] if quantizer.endswith(CUDA) else []
    return words + (["--compensate", *_calibration(facts.calibration)] if settings.get("compensate") else [])


def _calibration(calibration: CalibrationFacts | None) -> list[str]:
    if calibration is None or calibration.corpus is None:
        return []
    if calibration.samples is None or calibration.sequence_length is None:
        words = ["--tokens", calibration.corpus]
    else:
        words = ["--calibration", calibration.corpus, "--samples", str(calibration.samples)]
        words += ["--sequence-length", str(calibration.sequence_length)]
    floor = calibration.min_tokens_per_expert
    if floor is not None and floor != _DEFAULT_TOKENS_PER_EXPERT:
        words += ["--min-tokens-per-expert", str(floor)]
    return words + (["--precision", calibration.precision] if calibration.precision else [])
