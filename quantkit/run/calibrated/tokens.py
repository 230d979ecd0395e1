"""The calibration tokens of a run: whether they are enough, and what files and reports say about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from quantkit.calibration.coverage import LayerCoverage, coverage_report
from quantkit.calibration.layer_store import Arrays
from quantkit.calibration.tokens import TokenSet
from quantkit.errors import BadInput
from quantkit.formats.gguf.metadata import Pair, string, uint32
from quantkit.model.spec import HParams

# Rows per expert, on average, below which a Hessian or a scale search says more about the text than about the model.
MIN_MEAN_ROWS = 32

# Tokens by (layer, expert or None) where they became not finite.
Excluded = dict[tuple[int, int | None], int]


def check_tokens(tokens: int, hparams: HParams, origin: str = "calibration") -> None:
    """Raise BadInput when so few tokens cannot say what enters the experts; `origin` is their option or file."""
    rows = tokens * hparams.n_experts_used / hparams.n_experts
    if rows < MIN_MEAN_ROWS:
        needed = -(-MIN_MEAN_ROWS * hparams.n_experts // hparams.n_experts_used)
        raise BadInput(
            f"{origin}: {tokens:,} tokens are {rows:.4g} per expert on average, at least {needed:,} "
            f"({MIN_MEAN_ROWS} per expert) are needed; raise --samples or --sequence-length, or give a longer text"
        )


def calibration_pairs(tokens: TokenSet, min_tokens: int, precision: str) -> list[Pair]:
    """Keys of a GGUF that say what text its numbers come from."""
    return [
        string("quantkit.calibration.tokens_sha256", tokens.sha256()),
        string("quantkit.calibration", json.dumps(tokens.provenance, ensure_ascii=False, sort_keys=True)),
        uint32("quantkit.calibration.min_tokens_per_expert", min_tokens),
        string("quantkit.calibration.precision", precision),
    ]


def calibration_report(
    tokens: TokenSet, precision: str | None, excluded: Excluded, layers: Sequence[Arrays], min_tokens: int
) -> dict[str, Any]:
    """What a report says about the text and where it went; `layers` hold `routed` and `topped_up` [E] each."""
    coverage = [LayerCoverage(layer["routed"], layer["topped_up"]) for layer in layers]
    return {
        "tokens": len(tokens.ids),
        "tokens_sha256": tokens.sha256(),
        "calibration": tokens.provenance,
        "precision": precision,
        "excluded_tokens": [
            {"layer": layer, "expert": expert, "tokens": count} for (layer, expert), count in excluded.items()
        ],
        "coverage": coverage_report(coverage, min_tokens),
    }
