"""The server helper itself, and GGUF types and layouts that only have to load and answer."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gguf_files import GGUFFiles
from held_out import Prompt
from llama_cpp import STOP_SECONDS, ServerFailed, serve, start

OTHER_MIXES = ("f16", "q2_k", "q5_0", "q6_k", "iq4_xs", "mxfp4_moe")
SPLIT_BYTES = 4_000_000


@pytest.mark.parametrize("mix", OTHER_MIXES)
def test_other_types_load_and_answer_finite_numbers(
    mix: str, gguf_files: GGUFFiles, held_out_prompts: list[Prompt], tmp_path: Path
) -> None:
    prompt = held_out_prompts[0]
    with serve(gguf_files.write(mix)[0], tmp_path / "server") as server:
        answer = server.next_token(prompt.ids, 64)
    assert len(answer.logprobs) == 64
    assert all(math.isfinite(value) and value <= 0 for value in answer.logprobs.values())
    assert len(set(answer.logprobs.values())) > 32  # not one number for all


def test_split_file_answers_what_the_single_file_answers(
    gguf_files: GGUFFiles, held_out_prompts: list[Prompt], tmp_path: Path
) -> None:
    prompt = held_out_prompts[0]
    parts = gguf_files.write("q8_0", SPLIT_BYTES)
    assert len(parts) >= 3
    answers = []
    for number, first in enumerate((parts[0], gguf_files.write("q8_0")[0])):
        with serve(first, tmp_path / str(number)) as server:
            answers.append(server.next_token(prompt.ids, 64))
    assert answers[0] == answers[1]


def test_missing_part_is_refused_with_the_servers_log(gguf_files: GGUFFiles, tmp_path: Path) -> None:
    first = gguf_files.write("q8_0", SPLIT_BYTES)[0]
    lonely = tmp_path / first.name
    lonely.write_bytes(first.read_bytes())
    with pytest.raises(ServerFailed, match=r"(?s)while loading.*failed to load"):
        start(lonely, tmp_path / "server")


def test_stop_ends_the_process(gguf_files: GGUFFiles, tmp_path: Path) -> None:
    server = start(gguf_files.write("q8_0")[0], tmp_path / "server")
    assert server.get("/health") == {"status": "ok"}
    assert server.stop() == 0
    with pytest.raises(ServerFailed, match="refused"):
        server.get("/health")


def test_server_ends_with_a_killed_parent(gguf_files: GGUFFiles, tmp_path: Path) -> None:
    program = "import sys, llama_cpp; from pathlib import Path; "
    program += "print(llama_cpp.start(Path(sys.argv[1]), Path(sys.argv[2])).process.pid, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, gguf_files.write("q8_0")[0], tmp_path / "server"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert _runs(child)
        parent.send_signal(signal.SIGKILL)
    give_up = time.monotonic() + STOP_SECONDS
    while _runs(child) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    """Say whether the process exists and is more than an entry that nobody has collected."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
