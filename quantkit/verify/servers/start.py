"""Servers to verify with: started for the length of a with-block, or found running at an address."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.errors import BadInput
from quantkit.verify.servers import llama_cpp, sglang, vllm
from quantkit.verify.servers.identify import identified
from quantkit.verify.servers.process import HOST, LOG_NAME, Launch, started
from quantkit.verify.servers.running import Server, ServerFailed
from quantkit.verify.servers.runtimes import LLAMA_CPP, RUNTIMES, SGLANG, VLLM

KEY_VARIABLES = ("QUANTKIT_API_KEY", "OPENAI_API_KEY")
MODEL_VARIABLE = "QUANTKIT_MODEL"


@dataclass(frozen=True)
class ServerSettings:
    """What a server must be able to do. `context`: prompt and answer in tokens, None: as long as the model's own.

    `top` is the largest number of log-probabilities per position that will be asked. `programs`: vLLM's or SGLang's
    environment (folder or interpreter), llama.cpp's folder of programs. `arguments` go to the end of the command line.
    """

    context: int | None
    concurrency: int
    top: int
    programs: Path | None = None
    arguments: tuple[str, ...] = ()


LAUNCHES: dict[str, Callable[[Path, ServerSettings], Launch]] = {
    VLLM: vllm.launch,
    LLAMA_CPP: llama_cpp.launch,
    SGLANG: sglang.launch,
}


@contextmanager
def running(engine: str, model: Path, folder: Path, settings: ServerSettings) -> Iterator[Server]:
    """Start `engine` for `model` (a checkpoint's folder, or a GGUF), yield it once healthy, end all of its processes.

    Its log is `folder`/server.log. Raises BadInput where it cannot be started at all, ServerFailed where it does not
    become healthy. Nothing is left behind, however this process ends.
    """
    if engine not in LAUNCHES:
        raise BadInput(f"--engine {engine}: no server of that name can be started; choose {', '.join(LAUNCHES)}")
    if not model.exists():
        raise BadInput(f"{model}: no such file or folder")
    launch = LAUNCHES[engine](model.absolute(), settings)
    with started(launch, RUNTIMES[engine], folder) as process:
        server = identified(f"http://{HOST}:{launch.port}", api_key=None, model=None, is_local=True)
        if server.engine != engine:
            raise ServerFailed(f"port {launch.port}: {server.engine} answers where {engine} was started; try again")
        yield replace(
            server,
            version=launch.version or server.version,
            command=launch.command,
            log=folder / LOG_NAME,
            running=lambda: process.poll() is None,
        )


def attach(url: str, settings: ServerSettings) -> Server:
    """Return the server that answers at `url`, with or without /v1 at its end, and find out what it is.

    The key is $QUANTKIT_API_KEY or $OPENAI_API_KEY, the model $QUANTKIT_MODEL or the only one there. Raises BadInput
    where nobody answers, the key is refused, or the context is too short for `settings`.
    """
    key = next((value for name in KEY_VARIABLES if (value := os.environ.get(name, "").strip())), None)
    server = identified(url, api_key=key, model=os.environ.get(MODEL_VARIABLE) or None, is_local=False)
    if settings.context is not None and server.context is not None and server.context < settings.context:
        raise BadInput(
            f"{server.url}: takes {server.context} tokens of prompt and answer, {settings.context} are needed; "
            "start it with a longer context, or ask for shorter answers with --max-tokens"
        )
    return server
