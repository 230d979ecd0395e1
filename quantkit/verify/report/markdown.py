"""The report as Markdown for model cards and pull requests: the same figures, no pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.verify.report import calls, measured, origin, passages, summary
from quantkit.verify.report.figures import columns, figure, flatten, interval, part, title
from quantkit.verify.report.heatmap import worst_experts
from quantkit.verify.report.markdown_text import bullets, code, fence, plain, section, table
from quantkit.verify.report.text import cut, cut_front, token_text

_LONGEST = 1500  # characters of a text; the page shows more
_SHOWN_CALLS = 10


def render_markdown(report: Mapping[str, Any]) -> str:
    """The Markdown of a report; any part may be missing. Text of the models stands in code only, where nothing acts."""
    blocks = [
        _heading(report),
        _bullets(report, "reasons"),
        section("Gate", _gate(report)),
        section("Not measured", _bullets(report, "not_measured")),
        section("Figures", _figures(measured.other_figures(report))),
        section("By domain", _by_row("Domain", part(report, "metrics.domains"))),
        section("By position", _records(report.get("by_position") or [])),
        section("Worst divergences", *_worst(report)),
        section("Experts with the largest error", _experts(report)),
        section("Tool calls", _figures(measured.tool_call_figures(report))),
        section("Tool calls by category, quantized", _categories(report, "metrics")),
        section("Tool calls by category, reference", _categories(report, "reference_metrics")),
        section("As MiniMax's Provider-Verifier counts", _by_row("Side", part(report, "provider_verifier"))),
        section("Calls that differ", *_differences(report)),
        section("Noise: the reference measured against itself", _noise(report)),
        section("Engines", _records(report.get("engines") or [])),
        section("KL divergence of the tokens", _histogram(report)),
        section("Notes", _bullets(report, "notes")),
        section("Models", _models(report)),
        section("Measured with", _pairs(origin.material(report))),
        plain(f"{report.get('format') or 'quantkit report'}, measured {report.get('created') or 'at an unknown time'}"),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _heading(report: Mapping[str, Any]) -> str:
    verdict = plain(cut(str(report.get("verdict") or "No verdict"), 40))
    sides = [plain(summary.name_of(report, side)) for side in ("quantized", "reference")]
    count, not_finite = summary.counted(report), summary.not_finite(report)
    lines = [f"# {verdict}: {sides[0]} against {sides[1]}"]
    lines += [f"Checks: {plain(count)}."] if count else []
    lines += [f"Not finite: {plain(not_finite)}"] if not_finite else []
    return "\n\n".join(lines)


def _bullets(report: Mapping[str, Any], name: str) -> str:
    return bullets(origin.lines(report, name), _LONGEST)


def _gate(report: Mapping[str, Any]) -> str:
    head = ["Verdict", "Check", "Quantized", "Reference", "95 % interval", "Rule", "Margin", "Noise", "Why"]
    rows = []
    for check in summary.checks(report):
        span = interval(check.get("low"), check.get("high"))
        cells = [check.get("value"), check.get("reference"), span, check.get("rule"), check.get("margin")]
        cells += [check.get("noise"), check.get("why") or ""]
        name = _name(str(check.get("metric") or "?"))
        rows.append([f"**{plain(str(check.get('verdict') or '?'))}**", name, *[_cell(cell) for cell in cells]])
    return table(head, rows)


def _figures(rows: Sequence[measured.Row]) -> str:
    head = ["Figure", "Quantized", "Reference", "95 % interval", "Standard error", "Noise"]
    return table(head, [[_name(name), *[plain(cell) for cell in cells]] for name, *cells in rows])


def _by_row(first: str, found: Mapping[str, Any], prefix: str = "") -> str:
    rows = {name: values for name, values in found.items() if isinstance(values, Mapping)}
    names = columns(rows)
    cells = [[plain(row), *[_cell(flatten(values).get(name)) for name in names]] for row, values in rows.items()]
    return table([first, *[plain(title(prefix + name)) for name in names]], cells)


def _categories(report: Mapping[str, Any], of: str) -> str:
    return _by_row("Category", part(report, f"{of}.tool_calls.categories"), "tool_calls.")


def _records(found: Sequence[Any]) -> str:
    rows = [row for row in found if isinstance(row, Mapping)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = [plain(measured.COLUMNS.get(name, title(name))) for name in names]
    return table(head, [[_cell(row.get(name)) for name in names] for row in rows])


def _histogram(report: Mapping[str, Any]) -> str:
    return table(["KLD", "Tokens"], [[plain(span), count] for span, count in measured.histogram_rows(report)])


def _worst(report: Mapping[str, Any]) -> list[str]:
    blocks = []
    for one in [one for one in report.get("worst") or [] if isinstance(one, Mapping)][: passages.SHOWN]:
        actual = str(one.get("actual") or "")
        blocks.append(f"### KLD {figure(one.get('kld'))}: {plain(passages.place(one))}")
        blocks.append(fence(cut_front(str(one.get("context") or ""), passages.CONTEXT)))
        blocks.append(f"then {code(token_text(actual))}")
        sides = [[_expected(each) for each in passages.candidates(one, side)] for side in ("reference", "quantized")]
        longest = max(map(len, sides))
        left, right = ([*side, *[""] * (longest - len(side))] for side in sides)
        blocks.append(table(["Reference expects", "Quantized expects"], list(zip(left, right))))
    return blocks


def _expected(candidate: Mapping[str, Any]) -> str:
    return f"{code(token_text(str(candidate.get('text') or ''), 40))} {passages.probability(candidate.get('p'))}"


def _experts(report: Mapping[str, Any]) -> str:
    error = part(report, "layers").get("error") or []
    rows = [[str(layer), str(expert), figure(value)] for value, layer, expert in worst_experts(error)]
    return table(["Layer", "Expert", "Error"], rows)


def _differences(report: Mapping[str, Any]) -> list[str]:
    found = [one for one in report.get("differences") or [] if isinstance(one, Mapping)]
    blocks = []
    for one in found[:_SHOWN_CALLS]:
        blocks.append(f"### {plain(calls.heading(one))}")
        prompt = str(one.get("prompt") or "")
        blocks.append(fence(cut(prompt, _LONGEST)) if prompt else "")
        texts = [calls.whole_text(one.get(side) or {}) for side in ("reference", "quantized")]
        for side, text in zip(("Reference", "Quantized"), calls.aligned(texts[0], texts[1], _LONGEST)):
            blocks += [f"{side}:", fence(text)]
    more = len(found) - _SHOWN_CALLS
    return [*blocks, f"{more:,} more are in report.json." if more > 0 else ""]


def _noise(report: Mapping[str, Any]) -> str:
    rows = [[_name(name), figure(value)] for name, value in flatten(part(report, "noise")).items()]
    return table(["Figure", "Noise"], rows)


def _models(report: Mapping[str, Any]) -> str:
    rows = [
        [plain(name), *[(code if origin.is_code(key, value) else plain)(value, _LONGEST) for value in values]]
        for key, name, *values in origin.facts(report)
    ]
    return table(["", "Reference", "Quantized"], rows)


def _pairs(found: Mapping[str, str]) -> str:
    return table(["", ""], [[plain(name), code(value, _LONGEST)] for name, value in found.items()])


def _name(name: str) -> str:
    return f"{plain(title(name))} {code(name)}"


def _cell(value: object) -> str:
    return plain(figure(value), _LONGEST) if value != "" else ""
