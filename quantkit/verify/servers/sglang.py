"""How SGLang is started to be verified, from the environment it is installed in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.verify.servers.command import checkpoint_arguments
from quantkit.verify.servers.environments import find_environment, visible_gpus
from quantkit.verify.servers.parallel import most_gpus
from quantkit.verify.servers.process import HOST, Launch, free_port
from quantkit.verify.servers.runtimes import RUNTIMES, SGLANG

if TYPE_CHECKING:
    from quantkit.verify.servers.start import ServerSettings

INSTALL = "`pip install sglang` into an environment of its own"


def launch(model: Path, settings: ServerSettings) -> Launch:
    """Return how to start SGLang for the checkpoint in the folder `model`. Raises BadInput where it is not found."""
    runtime = RUNTIMES[SGLANG]
    environment = find_environment("sglang", settings.programs, runtime.variable, INSTALL)
    port = free_port()
    arguments = checkpoint_arguments(
        runtime,
        str(model),
        model.resolve().name,
        host=HOST,
        port=port,
        context=settings.context,
        parallel=most_gpus(model, max(1, visible_gpus())),
    )
    assert runtime.module is not None
    command = (str(environment.python), "-m", runtime.module, *arguments, *settings.arguments)
    return Launch(command, port, {"HF_HUB_OFFLINE": "1"}, withheld=("PYTHON",))
