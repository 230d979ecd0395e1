"""A server's process: started under the keeper, awaited until it is healthy, ended with all that belongs to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from quantkit.errors import QuantkitError
from quantkit.verify.servers import keeper
from quantkit.verify.servers.running import ServerFailed, last_lines
from quantkit.verify.servers.runtimes import Runtime

HOST = "127.0.0.1"
LOG_NAME = "server.log"
POLL_SECONDS = 0.2
REQUEST_SECONDS = 10.0
# Secrets of ours, keys that a server would ask of us, and what would lead another interpreter astray.
_WITHHELD = ("QUANTKIT_API_KEY", "OPENAI_API_KEY", "VLLM_API_KEY", "LLAMA_API_KEY")


@dataclass(frozen=True)
class Launch:
    """How to start a server that will listen at `port` of this machine."""

    command: tuple[str, ...]
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)  # beside ours
    version: str = ""  # where the server does not tell it
    withheld: tuple[str, ...] = ()  # beginnings of names in our environment that it does not get


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def started(launch: Launch, runtime: Runtime, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the length of a with-block and yield its keeper once the server is healthy.

    The log is `folder`/server.log, an earlier one is replaced. Raises ServerFailed with its last lines when the
    server ends before it is healthy, or is not within the runtime's limits.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / LOG_NAME
        with log.open("wb") as output:
            process = _keeper(launch, output.fileno())
    except OSError as error:
        raise QuantkitError(f"{folder}: the server's log cannot be written ({error.strerror}); mend that") from None
    try:
        _wait_until_healthy(process, launch, runtime, log)
        yield process
    finally:
        _end(process)


def _keeper(launch: Launch, output: int) -> subprocess.Popen[bytes]:
    withheld = (*_WITHHELD, *launch.withheld)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(withheld)}
    # -P: the modules beside the keeper are called like what servers import. A session of its own: Ctrl-C in a
    # terminal reaches us alone.
    return subprocess.Popen(
        [sys.executable, "-P", keeper.__file__, *launch.command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**inherited, **launch.environment},
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()  # at most twice the keeper's STOP_SECONDS


def _wait_until_healthy(process: subprocess.Popen[bytes], launch: Launch, runtime: Runtime, log: Path) -> None:
    begun = heard = time.monotonic()
    size = -1
    with httpx.Client(base_url=f"http://{HOST}:{launch.port}", trust_env=False, timeout=REQUEST_SECONDS) as client:
        while True:
            if process.poll() is not None:
                raise ServerFailed(f"{runtime.name} {_how_it_ended(process)} while loading; {_ends(log)}")
            if _is_healthy(client):
                return
            now = time.monotonic()
            if (grown := log.stat().st_size) != size:
                size, heard = grown, now
            if now - heard > runtime.silent_seconds:
                raise _late(f"wrote nothing for {runtime.silent_seconds:.0f} s", runtime, log)
            if now - begun > runtime.longest_seconds:
                raise _late(f"was not healthy after {runtime.longest_seconds:.0f} s", runtime, log)
            time.sleep(POLL_SECONDS)


def _is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == httpx.codes.OK
    except httpx.HTTPError:  # not listening yet
        return False


def _late(what: str, runtime: Runtime, log: Path) -> ServerFailed:
    return ServerFailed(
        f"{runtime.name} {what} while loading and was ended; start it by hand and give --server URL where it needs "
        f"longer; {_ends(log)}"
    )


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    if process.returncode == keeper.SIGNALLED + signal.SIGKILL:
        return "was killed (by the machine, if its memory was full)"
    if process.returncode > keeper.SIGNALLED:
        return f"crashed ({signal.Signals(process.returncode - keeper.SIGNALLED).name})"
    return f"ended with status {process.returncode}"


def _ends(log: Path) -> str:
    return f"its log, {log}, ends: {last_lines(log) or '(empty)'}"
