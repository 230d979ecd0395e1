"""FP8 to GGUFs on real llama.cpp servers, the original served as a BF16 GGUF; and damage that only a server shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Cli
from verdicts import all_finite, failed

Report = dict[str, Any]


@pytest.fixture
def greedy(requests: list[str]) -> list[str]:
    return [*requests, "--loops", "0"]


@pytest.fixture(scope="module")
def short_texts(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """llama.cpp scores token by token."""
    folder = tmp_path_factory.mktemp("short")
    files = []
    for name in ("code", "docs"):
        text = (tiny_m2 / "heldout" / f"text_{name}.txt").read_text()
        (folder / f"{name}.txt").write_text(text[:300])
        files += ["--text", str(folder / f"{name}.txt")]
    return files


def test_q5_k_m_passes_and_q2_k_fails(
    tiny_m2: Path,
    short_texts: list[str],
    greedy: list[str],
    cli: Cli,
    verify: Callable[..., tuple[int, Report]],
    tmp_path: Path,
) -> None:
    good, bad = tmp_path / "q5_k_m.gguf", tmp_path / "q2_k.gguf"
    for path in (good, bad):
        assert cli("gguf", path.stem, tiny_m2, "-o", path).code == 0
    code, report = verify(good, "--reference", tiny_m2, *short_texts, *greedy)
    assert (code, report["verdict"]) == (0, "PASS"), report["reasons"]
    assert all_finite(report["metrics"])
    assert report["models"]["reference"]["served_as"] == "a BF16 GGUF made of it"
    assert report["metrics"]["captured_mass"] == pytest.approx(1, abs=1e-4)
    reference = tmp_path / "report" / "reference.capture"
    reference.rename(tmp_path / "reference.capture")
    shutil.rmtree(tmp_path / "report")
    code, report = verify(bad, "--reference", tmp_path / "reference.capture")
    assert (code, report["verdict"]) == (3, "FAIL")
    assert "kld.mean" in failed(report)


def test_a_wrong_chat_template_is_caught_by_the_prompts_length(
    tiny_m2: Path,
    greedy: list[str],
    cli: Cli,
    verify: Callable[..., tuple[int, Report]],
    tmp_path: Path,
) -> None:
    other = Path(shutil.copytree(tiny_m2, tmp_path / "other"))
    template = (other / "chat_template.jinja").read_text()
    assert "]~b]system" in template
    (other / "chat_template.jinja").write_text(template.replace("]~b]system", "]~b]system\nYou are somebody else.", 1))
    out = tmp_path / "other.gguf"
    assert cli("gguf", "q8_0", other, "-o", out).code == 0
    code, report = verify(out, "--reference", tiny_m2, "--text", "none", *greedy)
    assert (code, report["verdict"]) == (3, "FAIL")
    assert "tool_calls.prompt_tokens_equal" in failed(report)
    assert "the two models have different chat templates" in report["notes"]
