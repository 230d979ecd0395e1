"""How long a server is waited for, and what is said of one that does not become healthy."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from server_processes import SLOW_SERVER, with_words

from quantkit.errors import QuantkitError
from quantkit.verify.servers.process import Launch, free_port, started
from quantkit.verify.servers.running import LAST_CHARACTERS, ServerFailed, last_lines
from quantkit.verify.servers.runtimes import RUNTIMES, VLLM

PATIENT = replace(RUNTIMES[VLLM], silent_seconds=1.5, longest_seconds=60)


def program(code: str, *arguments: object) -> Launch:
    port = free_port()
    return Launch((sys.executable, "-c", code, *map(str, arguments), str(port)), port)


def test_server_that_writes_is_waited_for_longer_than_a_silent_one(tmp_path: Path) -> None:
    begun = time.monotonic()
    with started(program(SLOW_SERVER, 8), PATIENT, tmp_path / "new" / "folder"):
        assert time.monotonic() - begun > PATIENT.silent_seconds
    assert "loading part 7" in (tmp_path / "new" / "folder" / "server.log").read_text()


def test_silent_server_is_given_up(tmp_path: Path) -> None:
    mark = tmp_path.name
    code = f"print('loading {mark}', flush=True); import time; time.sleep(1000)"
    with (
        pytest.raises(ServerFailed, match=rf"vllm wrote nothing for 2 s .*--server.*ends: loading {mark}$"),
        started(program(code), PATIENT, tmp_path),
    ):
        pytest.fail("it was taken for healthy")
    assert with_words(f"loading {mark}") == []


def test_server_that_loads_for_ever_is_given_up(tmp_path: Path) -> None:
    runtime = replace(PATIENT, longest_seconds=2)
    with (
        pytest.raises(ServerFailed, match="was not healthy after 2 s"),
        started(program(SLOW_SERVER, 1000), runtime, tmp_path),
    ):
        pytest.fail("it was taken for healthy")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('no memory left'); raise SystemExit(3)", r"vllm ended with status 3 while loading; .*no memory left$"),
        ("import os; os.kill(os.getpid(), 9)", r"vllm was killed .*memory.*\(empty\)$"),
        ("import os; os.kill(os.getpid(), 11)", r"vllm crashed \(SIGSEGV\)"),
    ],
)
def test_server_that_ends_while_loading_fails_at_once(code: str, said: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(ServerFailed, match=said) as failed, started(program(code), RUNTIMES[VLLM], tmp_path):
        pytest.fail("it was taken for healthy")
    assert time.monotonic() - begun < 10
    assert str(tmp_path / "server.log") in str(failed.value)
    assert "\n" not in str(failed.value)
    assert failed.value.exit_code == 1


def test_keys_of_ours_do_not_reach_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUANTKIT_API_KEY", "OPENAI_API_KEY", "VLLM_API_KEY", "LLAMA_API_KEY"):
        monkeypatch.setenv(name, "secret-of-ours")
    monkeypatch.setenv("OTHER", "kept")
    launch = program("import os, sys; print(dict(os.environ)); sys.exit(1)")
    with pytest.raises(ServerFailed), started(launch, RUNTIMES[VLLM], tmp_path):
        pytest.fail("it was taken for healthy")
    log = (tmp_path / "server.log").read_text()
    assert "secret-of-ours" not in log
    assert "'OTHER': 'kept'" in log


def test_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(QuantkitError, match="server's log cannot be written"),
        started(program(""), RUNTIMES[VLLM], tmp_path / "file" / "log"),
    ):
        pytest.fail("it was started")


def test_last_lines_are_one_short_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"early\n" * 5000 + b"\x1b[31m 10%\r 50%\r100%\n\n  RuntimeError: b\xffad\n")
    lines = last_lines(log)
    assert len(lines) == LAST_CHARACTERS
    assert lines.endswith("early | 100% | RuntimeError: b\N{REPLACEMENT CHARACTER}ad")
    assert lines.isprintable()
    assert last_lines(None) == last_lines(tmp_path / "missing") == ""
