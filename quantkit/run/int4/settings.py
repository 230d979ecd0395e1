"""What an INT4 run is asked for: method, file format, grid; checked before anything large is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from quantkit.errors import BadInput
from quantkit.formats import awq, compressed_tensors, gptq
from quantkit.formats.packed import FORMATS
from quantkit.formats.scheme import Attention
from quantkit.model.spec import HParams
from quantkit.quantize.integers import WHOLE_ROW, IntegerGrid

DEFAULT_GROUP_SIZE = 128
# Group sizes that --tp may choose from, the coarsest first. WHOLE_ROW is for those who ask for it.
CHOICES = (128, 64, 32)


class Method(StrEnum):
    """How the integers are found."""

    AWQ = "awq"
    GPTQ = "gptq"
    RTN = "rtn"


DEFAULT_FORMATS = {
    Method.AWQ: awq.NAME,
    Method.GPTQ: gptq.NAME,
    Method.RTN: compressed_tensors.NAME,
}


@dataclass(frozen=True)
class Int4Settings:
    """What decides about the bytes of the output, beside source and tokens.

    `format` is a key of FORMATS, `then_gptq` solves AWQ's scaled weights with GPTQ, `min_tokens` is the floor of tokens
    that every expert's statistics see.
    """

    method: Method
    format: str
    grid: IntegerGrid
    attention: Attention = Attention.BF16
    kept_layers: tuple[int, ...] = ()
    then_gptq: bool = False
    min_tokens: int = 256


def choose_settings(
    method: Method,
    *,
    bits: int = 4,
    group_size: int | None = None,
    symmetric: bool | None = None,
    format_name: str | None = None,
    attention: str = Attention.BF16,
    then_gptq: bool = False,
    min_tokens: int = 256,
) -> Int4Settings:
    """Return the settings for these options; None takes the default of the method, or of the format.

    Everything is symmetric but AWQ in its own format. Raises BadInput for what the format cannot hold and for unknown
    names. `kept_layers` is left empty: it takes the model's number of layers, see `parse_layers`.
    """
    name = format_name if format_name is not None else DEFAULT_FORMATS[method]
    if name not in FORMATS:
        raise BadInput(f"--format {name}: no such format; choose {', '.join(FORMATS)}")
    if attention not in tuple(Attention):
        raise BadInput(f"--attention {attention}: choose {', '.join(Attention)}")
    if symmetric is None:
        symmetric = not (method is Method.AWQ and name == awq.NAME)
    grid = IntegerGrid(bits, DEFAULT_GROUP_SIZE if group_size is None else group_size, symmetric)
    FORMATS[name].check(grid, Attention(attention))
    return Int4Settings(method, name, grid, attention=Attention(attention), then_gptq=then_gptq, min_tokens=min_tokens)


def parse_layers(text: str, layers: int) -> tuple[int, ...]:
    """Return the layers that `text` names, such as "61", "0,61" or "58-61", in order and once each.

    Raises BadInput for anything else, for layers that a model of `layers` does not have, and for all of them.
    """
    named: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", part)
        if match is None:
            raise BadInput(f"--keep-layers {text!r}: not a list of layers; write for example 61, 0,61 or 58-61")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise BadInput(f"--keep-layers {text!r}: {first}-{last} goes backwards; give {last}-{first}")
        if last >= layers:
            raise BadInput(f"--keep-layers {text!r}: the model has layers 0 to {layers - 1}; give some of these")
        named.update(range(first, last + 1))
    if len(named) == layers:
        raise BadInput(f"--keep-layers {text!r}: these are all layers, nothing would be quantized; keep fewer")
    return tuple(sorted(named))


def check_against_model(
    settings: Int4Settings, hparams: HParams, tp: int | None, group_size_given: bool
) -> tuple[Int4Settings, list[str]]:
    """Return settings that suit the model's dimensions and `tp` GPUs that share its matrices, and lines to print.

    A default group size that this tensor parallelism cannot serve is replaced by the coarsest one that it can, which
    a line says; one that was given is refused. Raises BadInput also for a `tp` that the model's heads do not allow.
    """
    if tp is not None:
        _check_tensor_parallel(tp, hparams)
    grid = settings.grid
    parts = _quantized_rows(settings, hparams, tp or 1)
    fitting = [size for size in CHOICES if all(columns % size == 0 for columns in parts.values())]
    if grid.group_size == WHOLE_ROW or grid.group_size in fitting:
        return settings, []
    what, columns = next((what, columns) for what, columns in parts.items() if columns % grid.group_size)
    problem = f"{what}{f' at --tp {tp}' if tp else ''} is {columns}, not a multiple of the group size {grid.group_size}"
    if tp is not None and not group_size_given and fitting:
        switched = replace(settings, grid=replace(grid, group_size=fitting[0]))
        return switched, [f"group size {fitting[0]}: {problem}"]
    option = f"--group-size {grid.group_size}" if group_size_given or tp is None else f"--tp {tp}"
    sizes = " or ".join(map(str, [*fitting, WHOLE_ROW]))
    fewer = ", or a smaller --tp" if tp else ""
    raise BadInput(f"{option}: {problem}; give --group-size {sizes} ({WHOLE_ROW}: whole rows){fewer}")


def _check_tensor_parallel(tp: int, hparams: HParams) -> None:
    legal = [count for count in range(1, hparams.n_heads + 1) if _heads_divide(count, hparams)]
    if tp not in legal:
        raise BadInput(
            f"--tp {tp}: {hparams.n_heads} heads, {hparams.n_kv_heads} key-value heads and an expert width of "
            f"{hparams.expert_width} cannot be shared by {tp}; give one of {', '.join(map(str, legal))}"
        )


def _heads_divide(tp: int, hparams: HParams) -> bool:
    # Key-value heads are shared out, or repeated where there are more GPUs than heads.
    kv_heads = hparams.n_kv_heads
    whole = hparams.n_heads % tp == 0 and hparams.expert_width % tp == 0
    return whole and (kv_heads % tp == 0 or tp % kv_heads == 0)


def _quantized_rows(settings: Int4Settings, hparams: HParams, tp: int) -> dict[str, int]:
    """Columns of the quantized matrices as one GPU holds them: w2 and the attention's output are cut, others not."""
    parts = {"the model's hidden size": hparams.hidden, "the experts' width": hparams.expert_width // tp}
    if settings.attention is Attention.INT4:
        parts["the width of the attention's output"] = hparams.n_heads * hparams.head_dim // tp
    return parts
