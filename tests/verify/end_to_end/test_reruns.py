"""A rerun of `quantkit verify` asks what is missing, and never takes answers that were given under other conditions."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import Cli

from quantkit.verify.capture_file import FIRST, Capture, open_capture

Report = dict[str, Any]


@pytest.fixture
def gguf(tiny_m2: Path, cli: Cli, tmp_path: Path) -> Path:
    out = tmp_path / "q8_0.gguf"
    assert cli("gguf", "q8_0", tiny_m2, "-o", out).code == 0
    return out


def capture_command(tiny_m2: Path, gguf: Path, out: Path, requests: list[str]) -> list[str]:
    options = ["--tokenizer", tiny_m2, "--text", "none", *requests]
    return list(map(str, [sys.executable, "-m", "quantkit", "verify", "capture", gguf, "-o", out, *options]))


def answered(out: Path) -> int:
    """Answers in an unfinished capture."""
    import sqlite3

    try:
        with sqlite3.connect(f"file:{out}.partial?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM answers").fetchone()[0])
    except sqlite3.Error:
        return 0


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGINT, id="interrupted", marks=pytest.mark.full),
    ],
)
def test_what_was_answered_is_not_asked_again(
    how: signal.Signals, tiny_m2: Path, gguf: Path, requests: list[str], cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "a.capture"
    command = capture_command(tiny_m2, gguf, out, requests)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while answered(out) < 10 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(how)
    said = process.communicate()[1]
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), said
    before = answered(out)
    assert before >= 10
    gone = time.monotonic() + 20
    while (left := [p.pid for p in psutil.process_iter(["cmdline"]) if str(gguf) in (p.info["cmdline"] or [])]) and (
        time.monotonic() < gone
    ):
        time.sleep(0.1)
    assert not left
    asked = []
    put_answer = Capture.put_answer

    def counted(self: Capture, *arguments: Any) -> None:
        asked.append(arguments[:4])
        put_answer(self, *arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Capture, "put_answer", counted)
        assert cli(*command[3:]).code == 0
    with open_capture(out) as capture:
        total = sum(len(list(capture.answers(run))) for run in (FIRST, "again"))
    assert len(asked) == total - before


def test_other_server_arguments_are_asked_anew(
    tiny_m2: Path, gguf: Path, requests: list[str], cli: Cli, verify: Callable[..., tuple[int, Report]], tmp_path: Path
) -> None:
    """Else a second run with a wrong template would pass on the answers of the first."""
    out = tmp_path / "a.capture"
    assert cli(*capture_command(tiny_m2, gguf, out, [*requests, "--loops", "0"])[3:]).code == 0
    code, _ = verify(gguf, "--reference", out)
    assert code == 0
    template = tmp_path / "other.jinja"
    text = (tiny_m2 / "chat_template.jinja").read_text()
    template.write_text(text.replace("]~b]system", "]~b]system\nYou are somebody else.", 1))
    done = cli(
        "verify",
        gguf,
        "--reference",
        out,
        "-o",
        tmp_path / "report",
        "--server-args",
        f"--chat-template-file {template}",
    )
    assert done.code == 2
    assert "exists already" in done.err
    code, report = verify(gguf, "--reference", out, "--server-args", f"--chat-template-file {template}", "--force")
    assert code == 3
    assert report["metrics"]["tool_calls"]["prompt_tokens_equal"] == 0
