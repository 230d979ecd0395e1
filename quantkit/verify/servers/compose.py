"""docker-compose files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from quantkit.verify.servers.process import HOST
from quantkit.verify.servers.runtimes import Runtime


def compose_file(
    runtime: Runtime, entry: list[str] | None, arguments: list[str], source: Path, target: str, gpus: int
) -> str:
    """Return a compose file that serves at the runtime's port of this machine alone.

    `source` on this machine is `target` in the container, read-only. `entry` None takes the image's own program, with
    0 `gpus` the image for CPUs is taken.
    """
    service: dict[str, Any] = {"image": runtime.image if gpus else runtime.cpu_image}
    if entry is not None:
        # Images have changed theirs between versions.
        service["entrypoint"] = entry
    service["command"] = [_literal(word) for word in arguments]
    mount = {"type": "bind", "source": _literal(str(source.absolute())), "target": _literal(target), "read_only": True}
    service["volumes"] = [mount]
    service["ports"] = [f"{HOST}:{runtime.port}:{runtime.port}"]
    if entry is not None:
        service["environment"] = {"HF_HUB_OFFLINE": "1"}
        # Processes that share a model talk through shared memory, of which a container has little of its own.
        service["ipc"] = "host"
    if gpus:
        devices = [{"driver": "nvidia", "count": gpus, "capabilities": ["gpu"]}]
        service["deploy"] = {"resources": {"reservations": {"devices": devices}}}
    return yaml.safe_dump({"services": {"model": service}}, sort_keys=False, width=1000, allow_unicode=True)


def _literal(word: str) -> str:
    # Compose replaces variables everywhere.
    return word.replace("$", "$$")
