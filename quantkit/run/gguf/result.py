"""What a run that writes GGUFs says about each of them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from quantkit.formats.gguf.types import tensor_bytes
from quantkit.recipe.recipe import Change
from quantkit.run.gguf.importance import Importance
from quantkit.run.gguf.plan import Output, Plan
from quantkit.run.sizes import peak_resident


@dataclass(frozen=True)
class GGUFResult:
    """A GGUF that a run wrote; sizes in bytes. `resumed_items` were on disk from an earlier, interrupted run.

    Seconds, memory and items are those of the whole run.
    """

    outputs: tuple[Path, ...]
    mix: str
    quantizer: str
    weights: int
    source_bytes: int
    output_bytes: int
    tensor_bytes: int
    seconds: float
    peak_rss: int
    items: int
    resumed_items: int
    types: dict[str, int]
    overflow_changes: tuple[Change, ...]
    importance: Importance | None
    ignored: tuple[str, ...]

    @property
    def bits_per_weight(self) -> float:
        """Tensor data only, as llama.cpp counts; tokenizer and keys are not weights."""
        return self.tensor_bytes * 8 / self.weights


def result_of(plan: Plan, output: Output, seconds: float, resumed: int) -> GGUFResult:
    """Describe a written output of `plan`."""
    tensors = plan.model.tensors
    return GGUFResult(
        outputs=tuple(part.path for part in output.parts),
        mix=output.recipe.base,
        quantizer=output.quantizer,
        weights=sum(math.prod(tensor.shape) for tensor in tensors),
        source_bytes=sum(entry.nbytes for entry in plan.checkpoint.tensors.values()),
        output_bytes=sum(part.size for part in output.parts),
        tensor_bytes=sum(tensor_bytes(output.types[tensor.gguf], tensor.shape) for tensor in tensors),
        seconds=seconds,
        peak_rss=peak_resident(),
        items=len(plan.items),
        resumed_items=resumed,
        types=dict(Counter(output.types.values())),
        overflow_changes=output.resolved.overflow_changes,
        importance=output.importance,
        ignored=plan.model.ignored,
    )
