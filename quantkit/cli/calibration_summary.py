"""How commands tell what calibration saw: coverage of the experts, tokens that were left out."""

from __future__ import annotations

from typing import Any

import typer


def coverage_as_json(coverage: dict[str, Any]) -> dict[str, Any]:
    """The coverage report without its long table per layer."""
    return {key: value for key, value in coverage.items() if key != "layers"}


def excluded_as_json(excluded: dict[tuple[int, int | None], int]) -> list[dict[str, Any]]:
    """Tokens left out by layer and expert (None: before the experts)."""
    return [{"layer": layer, "expert": expert, "tokens": count} for (layer, expert), count in excluded.items()]


def print_coverage(tokens: str, coverage: dict[str, Any], without_tokens: str) -> None:
    """Say how the tokens, described by `tokens`, reached the experts.

    `without_tokens` says what stands in for the statistics of experts that saw none.
    """
    typer.echo(
        f"{tokens}; tokens per expert: "
        f"{coverage['routed_min']} to {coverage['routed_max']}, median {coverage['routed_median']:.0f}"
    )
    if coverage["experts_below_floor"]:
        typer.echo(
            f"{coverage['experts_below_floor']} of {coverage['experts']} experts were routed fewer than "
            f"{coverage['min_tokens_per_expert']} tokens and topped up; "
            f"{coverage['experts_still_below_floor']} are still below"
            + ("; more --samples would help" if coverage["experts_still_below_floor"] else "")
        )
    if coverage["experts_without_tokens"]:
        typer.echo(f"{coverage['experts_without_tokens']} experts saw no token at all: {without_tokens}")


def print_excluded(excluded: dict[tuple[int, int | None], int]) -> None:
    """Say where tokens became NaN or infinite and were left out."""
    for (layer, expert), count in excluded.items():
        place = f"layer {layer}" if expert is None else f"layer {layer}, expert {expert}"
        typer.echo(f"excluded: {count} tokens became NaN or infinite in {place}")
