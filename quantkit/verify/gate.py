"""The gate: thresholds per metric as a recipe, and three verdicts from intervals.

    name: default
    checks:
      - {metric: kld.mean, at_most: 0.04}
      - {metric: tool_calls.trigger_f1, worse_by: 0.015, at_least: 0.98}

`at_most` and `at_least` bound the figure itself, `worse_by` its loss against the reference, which was measured twice: a
figure that compares answers is held against the reference's own second answers. A check passes when the whole interval
is on the right side, fails when the whole interval is on the wrong one, and is inconclusive in between.

* A bound that the reference itself does not meet says nothing about the quantized model: skipped, with a word.
* A bound or margin below twice the noise of the reference means nothing: it is widened to that, by WIDEST at most, and
  the report says so. More repetitions make less noise.
* NaN fails, in every gate.
* Figures without a spread (hard metrics, layers) are judged as they are.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from quantkit.errors import BadInput
from quantkit.verify.estimates import Interval
from quantkit.verify.metrics import METRICS, SAME
from quantkit.yaml_models import read_mapping, validated

NOISE_FACTOR = 2
WIDEST = 0.25


class Verdict(StrEnum):
    """What a check, or all of them, came to."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    SKIPPED = "SKIPPED"


class Check(BaseModel):
    """One line of a gate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    at_most: Annotated[float | None, Field(allow_inf_nan=False)] = None
    at_least: Annotated[float | None, Field(allow_inf_nan=False)] = None
    worse_by: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None

    @model_validator(mode="after")
    def _whole(self) -> Check:
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}; known: {', '.join(METRICS)}")
        if self.at_most is None and self.at_least is None and self.worse_by is None:
            raise ValueError(f"{self.metric}: give at_most, at_least or worse_by")
        if self.worse_by is not None and not self.metric.startswith("tool_calls."):
            raise ValueError(f"{self.metric}: compares with the reference already; give at_most or at_least")
        return self

    def rule(self) -> str:
        """The check as a person reads it."""
        parts = [f"at most {self.at_most:g}"] if self.at_most is not None else []
        parts += [f"at least {self.at_least:g}"] if self.at_least is not None else []
        parts += [f"worse by at most {self.worse_by:g}"] if self.worse_by is not None else []
        return ", ".join(parts)


FINITE = Check(metric="finite", at_least=1)


class Gate(BaseModel):
    """A gate as its YAML file describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    checks: Annotated[tuple[Check, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Gate:
        names = [check.metric for check in self.checks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{twice[0]} has two checks; write all its bounds in one")
        return self

    def sha256(self) -> str:
        """Hash of what the gate demands."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True)
class Figure:
    """A metric of the quantized model: its value and, where it has one, its interval.

    `reference` is what the reference has of it, for figures that compare two models its second measurement against
    its first; `loss` the interval of how much worse the quantized model is. `noise` is how far the reference's two
    measurements are apart or, where `loss` decides, by how much they may be apart by chance.
    """

    value: float
    spread: Interval | None = None
    reference: float | None = None
    loss: Interval | None = None
    noise: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A check with its verdict and a line that says why."""

    check: Check
    figure: Figure | None
    margin: float | None
    verdict: Verdict
    why: str


def gates_folder() -> Path:
    """Where the shipped gates are: inside an installed package, or at the top of a checkout."""
    inside = Path(__file__).resolve().parents[1] / "recipes" / "gates"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "recipes" / "gates"


def load_gate(name_or_file: str) -> Gate:
    """The shipped gate of that name, or the one in a YAML file. Raises BadInput naming file and field."""
    shipped = {path.stem: path for path in sorted(gates_folder().glob("*.yaml"))}
    path = shipped.get(name_or_file, Path(name_or_file))
    if name_or_file not in shipped and path.suffix.lower() not in (".yaml", ".yml"):
        raise BadInput(f"--gate {name_or_file}: no such gate; shipped: {', '.join(shipped)}; or give a .yaml file")
    return validated(Gate, read_mapping(path, "gate", "a gate is a mapping with name and checks"), str(path))


def judge(gate: Gate, figures: dict[str, Figure]) -> list[Outcome]:
    """Hold every check of the gate against the figures; what was not measured is SKIPPED.

    NaN fails, whatever the gate says.
    """
    checks = [check for check in gate.checks if check.metric != FINITE.metric]
    return [_judge(check, figures.get(check.metric)) for check in (FINITE, *checks)]


def overall(outcomes: list[Outcome]) -> Verdict:
    """One failure fails, one open question leaves the whole open, and nothing measured is no pass."""
    found = {outcome.verdict for outcome in outcomes}
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS):
        if verdict in found:
            return verdict
    return Verdict.INCONCLUSIVE


def _judge(check: Check, figure: Figure | None) -> Outcome:
    if figure is None:
        return Outcome(check, None, None, Verdict.SKIPPED, "not measured")
    if math.isnan(figure.value):
        return Outcome(check, figure, None, Verdict.SKIPPED, "nothing that it could be counted on")
    found: list[tuple[Verdict, str]] = []
    for bound, sign in ((check.at_most, 1), (check.at_least, -1)):
        if bound is not None:
            found.append(_bound(figure, bound, _outside_noise(check.metric, figure, bound, sign), sign))
    margin = None
    if check.worse_by is not None:
        margin = max(check.worse_by, min(NOISE_FACTOR * (figure.noise or 0.0), WIDEST))
        found.append(_loss(check, figure, margin))
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS, Verdict.SKIPPED):
        for each, why in found:
            if each is verdict:
                return Outcome(check, figure, margin, verdict, why)
    raise AssertionError("a check has at least one bound")


def _outside_noise(metric: str, figure: Figure, bound: float, sign: int) -> float:
    """The bound; where the reference's noise reaches over it, as far out as that."""
    if METRICS[metric].hard:
        return bound
    reach = min(NOISE_FACTOR * (figure.noise or 0.0), WIDEST)
    if metric in SAME:
        return sign * max(sign * bound, sign * SAME[metric] + reach) if reach else bound
    return bound + sign * reach


def _bound(figure: Figure, asked: float, bound: float, sign: int) -> tuple[Verdict, str]:
    """Judge a figure that must not be above (sign 1) or below (sign -1) a bound, which noise may have moved."""
    side = "above" if sign > 0 else "below"
    if figure.reference is not None and sign * figure.reference > sign * bound:
        return Verdict.SKIPPED, f"the reference itself is at {figure.reference:.4g}, {side} {bound:.4g}"
    words = f"{bound:.4g}"
    if bound != asked:
        words += f" (widened from {asked:g} by the reference's own noise)"
    spread = figure.spread or Interval(figure.value, figure.value, 0.0)
    near, far = (spread.low, spread.high) if sign > 0 else (spread.high, spread.low)
    if sign * far <= sign * bound:
        return Verdict.PASS, f"{_shown(figure)} is not {side} {words}"
    if sign * near > sign * bound:
        return Verdict.FAIL, f"{_shown(figure)} is {side} {words}"
    return Verdict.INCONCLUSIVE, f"{_shown(figure)} may be {side} {words}; more text or more --loops would tell"


def _loss(check: Check, figure: Figure, margin: float) -> tuple[Verdict, str]:
    if figure.loss is None:
        return Verdict.SKIPPED, "the reference has no figure to hold it against"
    widened = (
        f" (widened from {check.worse_by:g} to twice the reference's own noise)" if margin != check.worse_by else ""
    )
    loss = f"worse than the reference by {figure.loss.low:.4g} to {figure.loss.high:.4g}, margin {margin:.4g}{widened}"
    if figure.loss.high <= margin:
        return Verdict.PASS, loss
    if figure.loss.low > margin:
        return Verdict.FAIL, loss
    more = "--loops" if METRICS[check.metric].own else "--requests"
    return Verdict.INCONCLUSIVE, f"{loss}; more {more} would tell"


def _shown(figure: Figure) -> str:
    if figure.spread is None or not math.isfinite(figure.spread.low):
        return f"{figure.value:.4g}"
    return f"{figure.value:.4g} ({figure.spread.low:.4g} to {figure.spread.high:.4g})"
