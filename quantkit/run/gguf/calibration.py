"""The text that a compensated GGUF is made with, and what its keys say about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from quantkit.calibration.tokens import TokenSet
from quantkit.errors import BadInput
from quantkit.formats.gguf.metadata import Pair, array, boolean, string
from quantkit.forward.precision import find_device, find_dtype
from quantkit.model.spec import HParams, Kind, Model, ModelTensor
from quantkit.quantize.compensate import COMPENSATED_TYPES
from quantkit.quantize.rows import CAST_TYPES
from quantkit.run.calibrated.tokens import calibration_pairs

OUTPUT_ROLE = "output"


@dataclass(frozen=True)
class Calibration:
    """Tokens and how they pass: every expert's statistics see at least `min_tokens` of them, where there are any."""

    tokens: TokenSet = field(repr=False)
    min_tokens: int = 256
    device: str = "cpu"
    precision: str = "auto"

    def resolved_precision(self, hparams: HParams) -> str:
        """Of the matrix products: bfloat16 or float32."""
        dtype = find_dtype(self.precision, hparams, len(self.tokens.ids), find_device(self.device))
        return str(dtype).removeprefix("torch.")

    def pairs(self, model: Model, types: Mapping[str, str], led_by: str) -> list[Pair]:
        """Keys of a file with `types`; `led_by` is the mix whose outputs went from layer to layer.

        Raises BadInput when there is nothing to compensate.
        """
        if not compensated_tensors(model, types):
            raise BadInput(
                "--compensate: no tensor gets a type whose integers it could choose; leave it out, or choose a type "
                f"with {', '.join(sorted(COMPENSATED_TYPES))}"
            )
        return [
            boolean("quantkit.compensated", True),
            string("quantkit.compensation.led_by", led_by),
            array("quantkit.compensation.tensors_without", tensors_without(model, types)),
            *calibration_pairs(self.tokens, self.min_tokens, self.resolved_precision(model.hparams)),
        ]


def measured_tensors(model: Model) -> Iterator[ModelTensor]:
    """The tensors whose inputs are seen while tokens pass, and that may be quantized."""
    for tensor in model.tensors:
        if tensor.role.kind in (Kind.LINEAR, Kind.EXPERT) or tensor.role.name == OUTPUT_ROLE:
            yield tensor


def compensated_tensors(model: Model, types: Mapping[str, str]) -> list[str]:
    """The tensors whose integers are chosen with error feedback."""
    return [tensor.gguf for tensor in measured_tensors(model) if types[tensor.gguf] in COMPENSATED_TYPES]


def tensors_without(model: Model, types: Mapping[str, str]) -> list[str]:
    """The quantized tensors that stay with a search: by their type, or because nothing is known of their input."""
    compensated = set(compensated_tensors(model, types))
    return [name for name, kind in types.items() if kind not in CAST_TYPES and name not in compensated]
