"""Verdicts from intervals: passes, fails, leaves open, and knows the reference's noise."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.errors import BadInput
from quantkit.verify.estimates import Interval
from quantkit.verify.gate import Check, Figure, Gate, Verdict, gates_folder, judge, load_gate, overall
from quantkit.verify.metrics import METRICS

PASS, FAIL, OPEN, SKIPPED = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.SKIPPED


def spread(low: float, high: float) -> Interval:
    return Interval(low, high, (high - low) / 4)


def verdict(figure: Figure | None, metric: str, **bounds: float) -> Verdict:
    outcome = judge(Gate(name="test", checks=(Check(metric=metric, **bounds),)), {metric: figure} if figure else {})[-1]
    assert outcome.why
    return outcome.verdict


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.01, 0.03, PASS), (0.01, 0.04, PASS), (0.03, 0.05, OPEN), (0.041, 0.06, FAIL)]
)
def test_upper_bounds_hold_for_the_whole_interval(low: float, high: float, expected: Verdict) -> None:
    assert verdict(Figure((low + high) / 2, spread(low, high)), "kld.mean", at_most=0.04) is expected


@pytest.mark.parametrize(("low", "high", "expected"), [(0.9, 0.95, PASS), (0.8, 0.9, OPEN), (0.7, 0.87, FAIL)])
def test_lower_bounds_likewise(low: float, high: float, expected: Verdict) -> None:
    assert verdict(Figure((low + high) / 2, spread(low, high)), "same_top1", at_least=0.88) is expected


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(-0.02, 0.009, PASS), (-0.01, 0.011, OPEN), (0.0101, 0.03, FAIL), (-0.3, -0.1, PASS)]
)
def test_losses_are_held_against_the_margin(low: float, high: float, expected: Verdict) -> None:
    figure = Figure(0.97, spread(0.9, 1.0), reference=0.98, loss=spread(low, high))
    assert verdict(figure, "tool_calls.match_rate", worse_by=0.01) is expected


def test_hard_figures_are_judged_as_they_are() -> None:
    """One prompt of another length in a hundred is no matter of chance."""
    assert verdict(Figure(0.99), "tool_calls.prompt_tokens_equal", at_least=1) is FAIL
    assert verdict(Figure(1.0), "tool_calls.prompt_tokens_equal", at_least=1) is PASS
    assert verdict(Figure(0.999), "finite", at_least=1) is FAIL


def test_the_worse_of_two_bounds_counts() -> None:
    figure = Figure(0.99, spread(0.985, 0.995), reference=1.0, loss=spread(0.016, 0.02))
    assert verdict(figure, "tool_calls.trigger_f1", worse_by=0.015, at_least=0.98) is FAIL


def test_bounds_inside_the_noise_are_widened_to_twice_of_it() -> None:
    """A model that is 0.03 from itself cannot be held to 0.04, but to 0.06."""
    figure = Figure(0.05, spread(0.045, 0.055), reference=0.03, noise=0.03)
    assert verdict(figure, "kld.mean", at_most=0.04) is PASS
    assert verdict(Figure(0.05, spread(0.045, 0.055), 0.001, None, 0.001), "kld.mean", at_most=0.04) is FAIL
    same = Figure(0.85, spread(0.84, 0.86), reference=0.9, noise=0.1)
    assert verdict(same, "same_top1", at_least=0.88) is PASS


def test_margins_inside_the_noise_are_widened_and_said_to_be() -> None:
    loss = spread(-0.01, 0.03)
    gate = Gate(name="test", checks=(Check(metric="tool_calls.match_rate", worse_by=0.01),))
    narrow = judge(gate, {"tool_calls.match_rate": Figure(0.9, None, 0.91, loss, noise=0.001)})[-1]
    wide = judge(gate, {"tool_calls.match_rate": Figure(0.9, None, 0.91, loss, noise=0.02)})[-1]
    assert (narrow.verdict, narrow.margin) == (OPEN, 0.01)
    assert (wide.verdict, wide.margin) == (PASS, 0.04)
    assert "widened" in wide.why
    assert "widened" not in narrow.why


def test_noise_does_not_excuse_everything() -> None:
    figure = Figure(0.0, spread(0, 0), reference=1.0, loss=spread(0.9, 1.0), noise=0.9)
    assert verdict(figure, "tool_calls.match_rate", worse_by=0.01) is FAIL


def test_what_the_reference_does_not_meet_itself_is_skipped() -> None:
    figure = Figure(0.6, spread(0.5, 0.7), reference=0.7)
    assert verdict(figure, "tool_calls.schema_accuracy", at_least=0.98) is SKIPPED


def test_what_was_not_measured_is_skipped() -> None:
    assert verdict(None, "kld.mean", at_most=1) is SKIPPED
    assert verdict(Figure(float("nan")), "tool_calls.abstention", at_least=0.5) is SKIPPED


def test_the_whole_is_as_bad_as_its_worst_part() -> None:
    gate = Gate(name="test", checks=(Check(metric="kld.mean", at_most=0.04), Check(metric="same_top1", at_least=0.9)))
    sure, unsure = Figure(0.01, spread(0.01, 0.01)), Figure(0.9, spread(0.8, 1.0))
    assert overall(judge(gate, {"kld.mean": sure})) is PASS
    assert overall(judge(gate, {"kld.mean": sure, "same_top1": unsure})) is OPEN
    assert overall(judge(gate, {"kld.mean": Figure(1.0, spread(1, 1)), "same_top1": unsure})) is FAIL
    assert overall(judge(gate, {})) is OPEN


def test_shipped_gates_name_known_metrics_and_strict_is_stricter() -> None:
    default, strict = load_gate("default"), load_gate("strict")
    assert {path.stem for path in gates_folder().glob("*.yaml")} == {"default", "strict"}
    loose = {check.metric: check for check in default.checks}
    for check in strict.checks:
        other = loose[check.metric]
        assert check.metric in METRICS
        assert check.at_most is None or other.at_most is None or check.at_most <= other.at_most
        assert check.at_least is None or other.at_least is None or check.at_least >= other.at_least
        assert check.worse_by is None or other.worse_by is None or check.worse_by <= other.worse_by
    assert default.sha256() != strict.sha256()


def test_unknown_gate(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="shipped: default, strict"):
        load_gate("loose")
    with pytest.raises(BadInput, match=r"none\.yaml: cannot read the gate"):
        load_gate(str(tmp_path / "none.yaml"))


def test_nan_fails_in_a_gate_that_does_not_ask() -> None:
    gate = Gate(name="test", checks=(Check(metric="kld.mean", at_most=1),))
    outcomes = judge(gate, {"finite": Figure(0.999), "kld.mean": Figure(0.0, spread(0, 0))})
    assert [outcome.verdict for outcome in outcomes] == [FAIL, PASS]
    assert overall(outcomes) is FAIL
