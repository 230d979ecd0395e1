"""The report as tables in Markdown."""

from __future__ import annotations

from typing import Any

from gguf_peers.files import ATTENTION_8, COMPENSATED, IMATRIX, MATRICES_ONLY, PLAIN, THEIRS, TUNED, WHOLE_MIX

HELD_OUT_KIND = "held out"
FIGURES = ("mean", "median", "p99")
Report = dict[str, Any]


def tables(report: Report) -> str:
    """Every table of docs/compensation.md that the report has rows for."""
    parts = [
        _by_method(report, MATRICES_ONLY),
        _by_method(report, WHOLE_MIX),
        _by_kind(report, MATRICES_ONLY),
        _attention(report),
    ]
    return "\n\n".join(part for part in parts if part)


def _by_method(report: Report, mode: str) -> str:
    """Mean, median and 99th percentile of each method, and the compensated file's share of the imatrix one's."""
    methods = (PLAIN, IMATRIX, THEIRS, COMPENSATED, TUNED)
    header = ["type", "bits per weight", *methods, "mean / imatrix's", "median / imatrix's", "mean / llama.cpp's"]
    size = "bits_of_matrices" if mode == MATRICES_ONLY else "bits_per_weight"
    rows = []
    for type_name in _types(report, mode):
        cells = [_figures(_file(report, mode, type_name, method)) for method in methods]
        shares = [
            _ratio(report, mode, type_name, against, HELD_OUT_KIND, figure)
            for against, figure in ((IMATRIX, "mean"), (IMATRIX, "median"), (THEIRS, "mean"))
        ]
        bits = _file(report, mode, type_name, COMPENSATED)["size"][size]
        rows.append([type_name.upper(), f"{bits:.2f}", *cells, *shares])
    return f"**{mode.capitalize()}**: mean / median / 99th percentile\n\n{_table(header, rows)}" if rows else ""


def _by_kind(report: Report, mode: str) -> str:
    """The compensated file's mean as a share of the imatrix one's, by kind of text."""
    kinds = list(report["positions"])
    rows = [
        [type_name.upper(), *(_ratio(report, mode, type_name, IMATRIX, kind, "mean") for kind in kinds)]
        for type_name in _types(report, mode)
    ]
    header = ["mean / imatrix's", *(f"{kind} ({count:,})" for kind, count in report["positions"].items())]
    return f"**{mode.capitalize()}**: by kind of text (positions)\n\n{_table(header, rows)}" if rows else ""


def _attention(report: Report) -> str:
    """What Q8_0 for all that every token passes through costs and brings."""
    rows = []
    for mode in (WHOLE_MIX, ATTENTION_8):
        for type_name in _types(report, ATTENTION_8):
            for method in (PLAIN, IMATRIX, THEIRS, COMPENSATED):
                file = _file(report, mode, type_name, method)
                if file is not None:
                    size = f"{file['size']['tensor_bytes']:,}"
                    agreement = f"{file['answers']:.1%}"
                    rows.append([f"{type_name.upper()}, {mode}", method, size, _figures(file), agreement])
    header = ["type", "method", "bytes", "mean / median / 99th percentile", "answers as FP8"]
    return _table(header, rows) if rows else ""


def _types(report: Report, mode: str) -> list[str]:
    """Types with a compensated file, in the order of the run."""
    return [row["type"] for row in report["files"] if (row["mode"], row["method"]) == (mode, COMPENSATED)]


def _file(report: Report, mode: str, type_name: str, method: str) -> Any:
    key = (mode, type_name, method)
    return next((row for row in report["files"] if (row["mode"], row["type"], row["method"]) == key), None)


def _figures(file: Any) -> str:
    if file is None:
        return "-"
    found = file["divergence"][HELD_OUT_KIND]
    return " / ".join(f"{found[key]:.3g}" for key in FIGURES)


def _ratio(report: Report, mode: str, type_name: str, against: str, kind: str, figure: str) -> str:
    key = (mode, type_name, against, kind)
    found = next(row for row in report["ratios"] if (row["mode"], row["type"], row["against"], row["kind"]) == key)
    one = found[figure]
    return f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
