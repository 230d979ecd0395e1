"""A program: llama.cpp's server out of the xllamacpp wheel, with llama-server's options as far as they are needed.

    python embedded_llama.py --model FILE.gguf --host 127.0.0.1 --port N [--ctx-size N] [--parallel N] ...

It serves until it is ended.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

# llama-server's option -> its attribute in xllamacpp's parameters, and its type. Attributes may be nested.
OPTIONS: dict[str, tuple[str, type]] = {
    "--model": ("model.path", str),
    "--port": ("port", int),
    "--ctx-size": ("n_ctx", int),
    "--parallel": ("n_parallel", int),
    "--threads": ("cpuparams.n_threads", int),
    "--threads-batch": ("cpuparams_batch.n_threads", int),
    "--n-gpu-layers": ("n_gpu_layers", int),
    "--batch-size": ("n_batch", int),
    "--ubatch-size": ("n_ubatch", int),
    "--chat-template": ("chat_template", str),
    "--temp": ("sampling.temp", float),
    "--top-p": ("sampling.top_p", float),
    "--top-k": ("sampling.top_k", int),
}


# Options whose values are stored in a way of their own.
OTHERS = ("--host", "--alias", "--chat-template-file", "--reasoning-format")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the values of the options that were given, by option.

    Raises ValueError for an option that the embedded server does not have, and for a value that it cannot take.
    """
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for option, (_, kind) in OPTIONS.items():
        parser.add_argument(option, type=kind, dest=option)
    for option in OTHERS:
        parser.add_argument(option, dest=option)
    # Its only way with templates; accepted so that one table serves both servers.
    parser.add_argument("--jinja", action="store_true", dest="--jinja")
    return vars(parser.parse_args(arguments))


def main(arguments: Sequence[str]) -> None:
    """Load the model and serve it until the process is ended."""
    import xllamacpp

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    values = parse(arguments)
    settings = xllamacpp.CommonParams()
    settings.ui = False
    for option, (attribute, _) in OPTIONS.items():
        if option in values:
            *owners, last = attribute.split(".")
            setattr(functools.reduce(getattr, owners, settings), last, values[option])
    settings.hostnames = [values["--host"]]
    if "--alias" in values:
        settings.model_alias = {values["--alias"]}
    if "--chat-template-file" in values:
        settings.chat_template = Path(values["--chat-template-file"]).read_text(encoding="utf-8")
    if "--reasoning-format" in values:
        formats = xllamacpp.common_reasoning_format
        settings.reasoning_format = formats["COMMON_REASONING_FORMAT_" + values["--reasoning-format"].upper()]
    server = xllamacpp.Server(settings)
    print(f"listening at {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
