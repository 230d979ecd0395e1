"""vLLM's OpenAI-compatible server out of the environment that scripts/setup_vllm_cpu makes, with quantkit's plugin.

This file runs as a program between a test and the server: it starts the server, waits until its standard input closes
and ends the server and all processes of it. So nothing is left behind, however the test ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 300  # 17 s of processor time, most of it Python imports, on a machine that may be busy
STOP_SECONDS = 5  # then they are killed
REQUEST_SECONDS = 120
LOG_TAIL = 6000  # characters of the server's log in a failure message
POLL_SECONDS = 0.1

# How a user starts it, but for --enforce-eager.
SERVE = (
    "--host=127.0.0.1",
    "--dtype=bfloat16",  # the default of AWQ files is float16, which the last layer of the real model overflows
    "--enable-auto-tool-choice",
    "--tool-call-parser=minimax_m2",
    "--reasoning-parser=minimax_m2",
    "--gpu-memory-utilization=0.3",
    "--enforce-eager",
)
# One process and one small batch less: half of the start's time.
QUICK = (
    "--distributed-executor-backend=vllm.v1.executor.uniproc_executor.UniProcExecutor",
    "--max-model-len=2048",
    "--max-num-batched-tokens=512",
    "--max-num-seqs=2",
    "--num-gpu-blocks-override=32",
)

# Neither proxy settings of the environment nor redirects: the server is on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerFailed(AssertionError):
    """The server did not start, died, or refused a request; the message ends with its log."""


class VllmServer:
    """A running server; `url` is its base address on 127.0.0.1."""

    def __init__(self, keeper: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.keeper, self.url, self.log = keeper, url, log

    def prompt_logprobs(self, ids: list[int]) -> list[float]:
        """Return the log-probability of every token of the prompt `ids` but the first, before any sampling."""
        body = {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 0}
        (choice,) = self._post("/v1/completions", body)["choices"]
        first, *others = choice["prompt_logprobs"]
        assert first is None
        return [entry[str(token)]["logprob"] for token, entry in zip(ids[1:], others, strict=True)]

    def chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], limit: int) -> dict[str, Any]:
        """Return the one choice of `/v1/chat/completions` without sampling, of at most `limit` tokens."""
        body = {"messages": messages, "tools": tools, "temperature": 0, "max_tokens": limit}
        (choice,) = self._post("/v1/chat/completions", body)["choices"]
        return dict(choice)

    def is_healthy(self) -> bool:
        try:
            with _opener.open(self.url + "/health", timeout=REQUEST_SECONDS) as reply:
                return bool(reply.status == 200)
        except OSError:  # not listening yet
            return False

    def tail(self) -> str:
        """Return the end of the server's log, for a failure message."""
        return f"--- end of {self.log}\n{self.log.read_text(errors='replace')[-LOG_TAIL:]}"

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with _opener.open(request, timeout=REQUEST_SECONDS) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise ServerFailed(f"{path} answered {error.code}: {said}\n{self.tail()}") from None
        except OSError as error:
            raise ServerFailed(f"{path}: {error}\n{self.tail()}") from None


def vllm_python() -> str:
    """Return the interpreter of vLLM's environment."""
    asked = subprocess.run(
        [ROOT / "scripts" / "setup_vllm_cpu", "--python"], capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr
    return asked.stdout.strip()


def vllm_environment() -> dict[str, str]:
    """Return this process's environment as vLLM gets it: one thread, no network, no files in the home folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "PYTHON"))}
    return kept | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(Path(vllm_python()).parents[1] / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }


@contextmanager
def serve(
    checkpoint: Path | str,
    folder: Path,
    *,
    options: tuple[str, ...] = QUICK,
    python_path: Path | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[VllmServer]:
    """Run a server for `checkpoint` for the length of a with-block; `folder`, not there yet, is for its log.

    A `checkpoint` may be a repo's id, of the Hub that `environment` (added to the usual one) names. `python_path` is a
    folder of modules that the server may import. Raises ServerFailed with the server's log when it
    ends early or is not healthy within START_SECONDS.
    """
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [vllm_python(), "-m", "vllm.entrypoints.openai.api_server", f"--model={checkpoint}", f"--port={port}"]
    log = folder / "server.log"
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            [sys.executable, __file__, *command, *SERVE, *options],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=vllm_environment() | ({"PYTHONPATH": str(python_path)} if python_path else {}) | (environment or {}),
        )
    server = VllmServer(keeper, f"http://127.0.0.1:{port}", log)
    try:
        _wait_until_healthy(server)
        yield server
    finally:
        assert keeper.stdin is not None
        keeper.stdin.close()
        keeper.wait()


def _wait_until_healthy(server: VllmServer) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        if server.keeper.poll() is not None:
            raise ServerFailed(f"the server ended with {server.keeper.returncode} while loading\n{server.tail()}")
        if server.is_healthy():
            return
        time.sleep(POLL_SECONDS)
    raise ServerFailed(f"the server was not healthy after {START_SECONDS} s\n{server.tail()}")


def _keep(command: list[str]) -> int:
    """Run `command` in a session of its own until it ends or standard input closes, then end all of the session."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        while server.poll() is None and not _input_closed():
            pass
    finally:
        _end_session(server)
    return server.returncode


def _input_closed() -> bool:
    """Wait a moment for standard input to close."""
    readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
    return bool(readable)


def _end_session(server: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, how)
        except ProcessLookupError:
            break
        give_up = time.monotonic() + STOP_SECONDS
        while _session_runs(server) and time.monotonic() < give_up:
            time.sleep(POLL_SECONDS)


def _session_runs(server: subprocess.Popen[bytes]) -> bool:
    server.poll()  # collects it, else it would stay in its group
    try:
        os.killpg(server.pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(_keep(sys.argv[1:]))
