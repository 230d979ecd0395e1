"""What was measured, against what, with which intervals; and, as plainly, what was not."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from quantkit.hub.card.facts import RECORDS, Measured, QuantFacts, ReportFacts
from quantkit.hub.card.files_table import metric_cell
from quantkit.hub.card.metadata import ON_REQUESTS, ON_TEXTS
from quantkit.verify.report.figures import ABSENT, explanation, interval, title
from quantkit.verify.report.markdown_text import bullets, code, plain, section, table

_LINE = 600
# Shown beside those of the metadata.
FURTHER = (
    "kld.median",
    "kld.p99",
    "kld.max",
    "rms_delta_p",
    "captured_mass",
    "scored_tokens",
    "layers.expert_error_max",
    "layers.routing_min",
    "tool_calls.parser_fail",
    "tool_calls.interleaved_success",
)
SHOWN = (*ON_TEXTS, *ON_REQUESTS, *FURTHER)
# Verdict -> what it means, as the report itself says it.
VERDICTS = {
    "PASS": "every check of the gate holds.",
    "FAIL": "at least one check of the gate does not hold.",
    "INCONCLUSIVE": "no check failed, but some cannot be decided from what was measured.",
}


def quality_section(facts: Sequence[QuantFacts]) -> str:
    """Figures, reference, gate and verdict of every quantization that was measured."""
    measured = [one for one in facts if one.report is not None]
    if not measured:
        return section("Measured quality", "**Nothing was measured.** No figure of quality is known for these files.")
    blocks = [_one(one.name, one.report) for one in sorted(measured, key=lambda one: one.size) if one.report]
    return section(
        "Measured quality",
        "Both models were given the same texts and requests, and compared with the reference named below; ranges are "
        "95 % intervals. KLD is the Kullback-Leibler divergence of the next-token distribution from the reference's.",
        *blocks,
    )


def not_measured_section(facts: Sequence[QuantFacts]) -> str:
    """Everything that nobody looked at, by quantization."""
    lines = []
    for one in facts:
        if one.report is None:
            lines.append(f"{one.name}: nothing; no perplexity, no divergence, no tool call")
            continue
        lines += [f"{one.name}: {missing}" for missing in one.report.not_measured]
        engine, hardware = one.report.quantized.engine, one.report.quantized.hardware
        where = f" on {hardware}" if hardware else ""
        lines.append(f"{one.name}: any other runtime or hardware than {_engine(one.report.quantized)}{where}")
        if engine == "streamed":
            lines.append(f"{one.name}: a server's own kernels; figures are those of the weights alone")
    lines.append("Benchmarks of tasks (code, agents, knowledge), safety, and contexts longer than the texts scored")
    return section("Not measured", bullets(lines, _LINE))


def _one(name: str, report: ReportFacts) -> str:
    says = VERDICTS.get(report.verdict, "not a verdict that is known here.")
    rows = [
        [
            plain(title(key)),
            metric_cell(report, key),
            interval(*report.intervals[key]) if key in report.intervals else ABSENT,
            plain(explanation(key)) or ABSENT,
        ]
        for key in SHOWN
        if metric_cell(report, key) != ABSENT
    ]
    blocks = [
        f"### {plain(name)}: {plain(report.verdict)}",
        f"Verdict **{plain(report.verdict)}** by the gate {code(report.gate or 'unnamed')}: {says}",
        bullets(report.reasons, _LINE),
        table(["Figure", "Value", "95 % interval", "What it says"], rows),
        bullets(_definition(report), _LINE),
        f"All of it: [report.html]({RECORDS}/{quote(name)}/report.html)",
    ]
    return "\n\n".join(block for block in blocks if block)


def _definition(report: ReportFacts) -> list[str]:
    """What the reference is, what was scored, and what to keep in mind."""
    lines = [
        f"Reference: {report.reference.name} ({report.reference.kind or 'unknown kind'}), {_ran(report.reference)}"
    ]
    lines.append(f"Quantized: {report.quantized.name} ({report.quantized.kind}), {_ran(report.quantized)}")
    if report.texts.get("tokens"):
        lines.append(f"Texts: {report.texts.get('passages', 0):,} passages, {report.texts['tokens']:,} tokens")
    if report.requests.get("count"):
        lines.append(f"Requests: {report.requests['count']:,}, {report.requests.get('loops', 1)} rounds of sampling")
    if report.created:
        lines.append(f"Measured {report.created} with quantkit verify")
    return [*lines, *report.notes]


def _ran(side: Measured) -> str:
    return f"run by {_engine(side)}" + (f" on {side.hardware}" if side.hardware else "")


def _engine(side: Measured) -> str:
    name = "quantkit's streamed pass" if side.engine == "streamed" else side.engine or "an engine that is not recorded"
    return f"{name} {side.engine_version}" if side.engine_version else name
