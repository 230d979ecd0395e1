"""The three files of a report on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_text import Page
from sample_report import sample_report

from quantkit.errors import QuantkitError
from quantkit.verify.report.write import write_report


def _strict_json(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_json_holds_the_report_as_it_is(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "folder", sample_report())
    folder = tmp_path / "new" / "folder"
    assert _strict_json(folder / "report.json") == sample_report()
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json", "report.md"]
    assert Page((folder / "report.html").read_text(encoding="utf-8")).unclosed == []


def test_figures_that_are_not_finite_become_null_and_are_listed(tmp_path: Path) -> None:
    kld = {"mean": float("nan"), "max": float("inf"), "median": 0.5}
    report = {"verdict": "FAIL", "metrics": {"kld": kld}, "layers": {"error": [[0.1, float("-inf")]]}}
    write_report(tmp_path, report)
    written = _strict_json(tmp_path / "report.json")
    assert written["metrics"]["kld"] == {"mean": None, "max": None, "median": 0.5}
    assert written["not_finite"] == ["metrics.kld.mean", "metrics.kld.max", "layers.error.0.1"]
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "Not finite" in text
        assert "NaN" in text
    assert report["metrics"]["kld"] is kld  # the caller's report is left alone


def test_numpy_numbers_and_unpaired_surrogates_are_written(tmp_path: Path) -> None:
    report = {"top": np.int64(128), "kld": np.float32(0.5), "same": np.float64(0.25), "tokens": ("\ud800a", "😀")}
    write_report(tmp_path, {"metrics": report})
    written = _strict_json(tmp_path / "report.json")["metrics"]
    assert written == {"top": 128, "kld": 0.5, "same": 0.25, "tokens": ["\ufffda", "😀"]}


def test_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    write_report(tmp_path, {"verdict": "PASS"})
    write_report(tmp_path, {"verdict": "FAIL"})
    for name in ("report.json", "report.md", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "FAIL" in text
        assert "PASS" not in text.partition("<body>")[2]


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here already")
    with pytest.raises(QuantkitError, match=r"report\.json.*cannot be written") as raised:
        write_report(tmp_path / "file" / "folder", {})
    assert "\n" not in str(raised.value)
