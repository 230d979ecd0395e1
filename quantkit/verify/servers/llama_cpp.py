"""How llama.cpp is started to be verified: a given llama-server, or the one inside of the xllamacpp wheel."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import BadInput
from quantkit.formats.gguf.read import split_parts
from quantkit.verify.servers import embedded_llama
from quantkit.verify.servers.environments import given
from quantkit.verify.servers.process import HOST, Launch, free_port
from quantkit.verify.servers.runtimes import LLAMA_CPP, ONE_THREAD_BELOW, RUNTIMES, options

if TYPE_CHECKING:
    from quantkit.verify.servers.start import ServerSettings


ONE_THREAD = ("--threads", "1", "--threads-batch", "1")
EMBEDDED = (sys.executable, "-P", embedded_llama.__file__)


def launch(model: Path, settings: ServerSettings) -> Launch:
    """Return how to start llama.cpp for the GGUF `model`, any part of a split one.

    Every one of `settings.concurrency` slots gets the whole context: llama.cpp divides what it is given by their
    number. Raises BadInput for missing parts or programs, and for arguments that the embedded server does not have.
    """
    parts = gguf_parts(model)
    first = parts[0]
    port = free_port()
    slots = max(1, settings.concurrency)
    arguments = options(
        RUNTIMES[LLAMA_CPP],
        model=str(first),
        name=first.stem,
        host=HOST,
        port=port,
        context=settings.context * slots if settings.context is not None else None,
        slots=slots,
    )
    if sum(part.stat().st_size for part in parts) < ONE_THREAD_BELOW:
        arguments = [*arguments, *ONE_THREAD]
    programs = settings.programs or given(RUNTIMES[LLAMA_CPP].variable)
    if programs is not None:
        program: tuple[str, ...] = (str(llama_server(programs)),)
        version = ""
    else:
        _check_embedded(settings.arguments)
        program = EMBEDDED
        version = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    # Its options can also be set by variables, which nobody would see in a report.
    return Launch((*program, *arguments, *settings.arguments), port, version=version, withheld=("LLAMA_ARG_",))


def gguf_parts(model: Path) -> tuple[Path, ...]:
    """Return the files of a GGUF, the first part first; BadInput where `model` is none or a part is missing."""
    if not model.is_file():
        raise BadInput(f"{model}: not a file; llama.cpp loads a GGUF, which `quantkit gguf` writes")
    parts = split_parts(model)
    for part in parts:
        if not part.is_file():
            raise BadInput(f"{part}: missing; all parts of a split model must be in one folder")
    return parts


def llama_server(programs: Path) -> Path:
    """Return llama-server in a folder of llama.cpp's programs, or `programs` itself if it is a file."""
    program = programs if programs.is_file() else programs / RUNTIMES[LLAMA_CPP].program
    if not program.is_file() or not os.access(program, os.X_OK):
        raise BadInput(f"{programs}: no llama-server there; give the folder of llama.cpp's programs (build/bin)")
    return program.absolute()


def _check_embedded(arguments: tuple[str, ...]) -> None:
    try:
        embedded_llama.parse(arguments)
    except ValueError as error:
        raise BadInput(
            f"{' '.join(arguments)}: the embedded llama.cpp server does not take this ({error}); "
            f"name a folder with llama-server in ${RUNTIMES[LLAMA_CPP].variable}"
        ) from None
