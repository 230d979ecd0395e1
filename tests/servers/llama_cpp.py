"""llama.cpp's OpenAI-compatible server out of the xllamacpp wheel, each in a child process of its own.

The child runs this file as a program: it loads the model, writes the server's address into a file and serves until
its standard input closes. So it ends with its parent, however that one ends, and no process is left behind.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 60
STOP_SECONDS = 20
REQUEST_SECONDS = 60
LOG_TAIL = 4000  # characters of the server's log in a failure message
POLL_SECONDS = 0.02

# Neither proxy settings of the environment nor redirects: the server is on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerFailed(AssertionError):
    """The server did not start, died, or refused a request; the message ends with its log."""


@dataclass(frozen=True)
class Completion:
    """One generated token: log-probabilities by token id before sampling, and why generation stopped."""

    logprobs: dict[int, float]
    tokens: list[int]
    stop_type: str


class LlamaServer:
    """A running server; `url` is its base address on 127.0.0.1. End it with `stop`, or get it from `serve`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log

    def stop(self) -> int:
        """End the child process and return its exit status, 0 for an orderly end."""
        return _end(self.process)

    def get(self, path: str) -> Any:
        """Return the JSON answer of `GET path`."""
        return self._answer(urllib.request.Request(self.url + path))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON answer of `POST path`; raise ServerFailed when its status is not 2xx."""
        headers = {"Content-Type": "application/json"}
        return self._answer(urllib.request.Request(self.url + path, json.dumps(body).encode(), headers))

    def tokenize(self, text: str) -> list[int]:
        """Return the server's token ids of `text`, special tokens written out in it recognised, none added."""
        body = {"content": text, "parse_special": True, "add_special": False}
        tokens: list[int] = self.post("/tokenize", body)["tokens"]
        return tokens

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        """Return the prompt that the server makes of a conversation, generation prompt included."""
        body = {"messages": messages, **({"tools": tools} if tools else {})}
        prompt: str = self.post("/apply-template", body)["prompt"]
        return prompt

    def next_token(self, ids: list[int], vocabulary: int) -> Completion:
        """Return the log-probabilities of all `vocabulary` tokens after the prompt `ids`.

        They are the softmax over the raw logits: llama.cpp computes them before any sampler, and a temperature below
        zero makes it take the most probable token without changing them.
        """
        body = {
            "prompt": ids,
            "n_predict": 1,
            "n_probs": vocabulary,
            "temperature": -1,
            "post_sampling_probs": False,
            "return_tokens": True,
            "cache_prompt": True,
        }
        answer = self.post("/completion", body)
        (step,) = answer["completion_probabilities"]
        logprobs = {entry["id"]: entry["logprob"] for entry in step["top_logprobs"]}
        return Completion(logprobs, answer["tokens"], answer["stop_type"])

    def chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, limit: int) -> dict[str, Any]:
        """Return the answer of `/v1/chat/completions` without sampling, of at most `limit` tokens."""
        body = {"messages": messages, "temperature": 0, "max_tokens": limit, **({"tools": tools} if tools else {})}
        answer: dict[str, Any] = self.post("/v1/chat/completions", body)
        return answer

    def _answer(self, request: urllib.request.Request) -> Any:
        try:
            with _opener.open(request, timeout=REQUEST_SECONDS) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise ServerFailed(f"{request.selector} answered {error.code}: {said}\n{_tail(self.log)}") from None
        except OSError as error:
            raise ServerFailed(f"{request.selector}: {error}\n{_tail(self.log)}") from None


def start(model: Path, folder: Path, *, context: int = 2048, full_cache: bool = False) -> LlamaServer:
    """Start a server for the GGUF `model` (the first part of a split one) and wait until it is healthy.

    `folder` is for its log and must not exist yet. `full_cache` keeps keys and values in F32 instead of F16. Raises
    ServerFailed with the server's log when it ends before that, or is not healthy within START_SECONDS.
    """
    folder.mkdir(parents=True)
    log, address = folder / "server.log", folder / "address"
    command = [sys.executable, __file__, model, address, "--context", str(context)]
    command += ["--full-cache"] if full_cache else []
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)
    try:
        return _wait_until_healthy(process, address, log, model)
    except BaseException:
        _end(process)
        raise


@contextmanager
def serve(model: Path, folder: Path, *, context: int = 2048, full_cache: bool = False) -> Iterator[LlamaServer]:
    """Run a server for the length of a with-block and check that it ended in an orderly way."""
    server = start(model, folder, context=context, full_cache=full_cache)
    try:
        yield server
    finally:
        status = server.stop()
    if status != 0:
        raise ServerFailed(f"{model}: the server ended with status {status}\n{_tail(server.log)}")


def _wait_until_healthy(process: subprocess.Popen[bytes], address: Path, log: Path, model: Path) -> LlamaServer:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise ServerFailed(f"{model}: the server ended with {process.returncode} while loading\n{_tail(log)}")
        if address.exists():
            server = LlamaServer(process, address.read_text(), log)
            if _is_healthy(server.url):
                return server
        time.sleep(POLL_SECONDS)
    raise ServerFailed(f"{model}: the server was not healthy after {START_SECONDS} s\n{_tail(log)}")


def _is_healthy(url: str) -> bool:
    try:
        with _opener.open(url + "/health", timeout=REQUEST_SECONDS) as reply:
            return bool(reply.status == 200)
    except OSError:  # not listening yet, or 503 while loading
        return False


def _end(process: subprocess.Popen[bytes]) -> int:
    if process.stdin is not None:
        process.stdin.close()
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _tail(log: Path) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    return f"--- end of {log}\n{text[-LOG_TAIL:]}"


def _serve_until_input_closes(model: str, address: Path, context: int, full_cache: bool) -> None:
    """The child: load, announce the address under its final name in one step, wait for the parent."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = model
    settings.hostnames = ["127.0.0.1"]
    settings.port = 0  # any free one
    settings.n_ctx = context
    settings.n_parallel = 1
    settings.n_gpu_layers = 0
    settings.cpuparams.n_threads = 1  # the model is small and the machine shared
    settings.cpuparams_batch.n_threads = 1
    settings.warmup = False
    if full_cache:
        settings.cache_type_k = settings.cache_type_v = int(xllamacpp.ggml_type.GGML_TYPE_F32)
        settings.flash_attn_type = int(xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED)
    settings.fit_params = False
    settings.ui = False
    server = xllamacpp.Server(settings)
    draft = address.with_suffix(".draft")
    draft.write_text(server.listening_address)
    draft.rename(address)
    sys.stdin.buffer.read()
    del server


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("address", type=Path)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--full-cache", action="store_true")
    arguments = parser.parse_args()
    _serve_until_input_closes(arguments.model, arguments.address, arguments.context, arguments.full_cache)


if __name__ == "__main__":
    _main()
