"""Python environments of vLLM and SGLang: which one is meant, what is installed in it, which GPUs it sees."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import quantkit
from quantkit.errors import BadInput

PROBE_SECONDS = 60.0
# Importing nothing of them: vLLM alone takes ten seconds. The CPU build is a distribution of its own, or says so.
_PROBE = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Environment:
    """An interpreter with a runtime installed."""

    python: Path
    version: str
    is_cpu_build: bool


def find_environment(package: str, programs: Path | None, variable: str, install: str) -> Environment:
    """Return the environment to start `package` from: `programs`, else the one that `variable` names, else this one.

    `programs` is a folder of an environment or its interpreter. vLLM is also looked for where a source checkout has
    it. Raises BadInput that says how to `install` the package where there is none.
    """
    named = programs or given(variable)
    if named is not None:
        origin = str(programs) if programs else f"{variable}={named}"
        return _probed(interpreter(named, origin), package, origin, install)
    if importlib.util.find_spec(package) is not None:
        return _probed(Path(sys.executable), package, sys.executable, install)
    checkout = Path(quantkit.__file__).parents[1] / ".cache" / f"{package}-cpu" / "bin" / "python"
    if checkout.is_file():
        return _probed(checkout, package, str(checkout), install)
    raise BadInput(f"{package} is not installed here; {install}, and name the folder of its environment in ${variable}")


def given(variable: str) -> Path | None:
    """The path in an environment variable, None where it is not set."""
    value = os.environ.get(variable)
    return Path(value) if value else None


def interpreter(path: Path, origin: str) -> Path:
    """Return the interpreter of an environment's folder, or `path` itself if it is a file; BadInput for neither."""
    python = path if path.is_file() else path / "bin" / "python"
    if not python.is_file() or not os.access(python, os.X_OK):
        raise BadInput(f"{origin}: no interpreter there; give the folder of a Python environment, or its bin/python")
    # Not resolved: the link is what makes an environment of it.
    return python.absolute()


def visible_gpus() -> int:
    """How many NVIDIA GPUs a server started now would see."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        # As the driver reads it: what stands behind an invalid entry counts for nothing.
        return next((number for number, name in enumerate(names) if name in ("", "-1")), len(names))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=PROBE_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _probed(python: Path, package: str, origin: str, install: str) -> Environment:
    command = [str(python), "-I", "-c", _PROBE, package, f"{package}-cpu"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True)
        found: dict[str, str] = json.loads(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise BadInput(f"{origin}: {python} does not run as a Python interpreter ({error}); give another") from None
    if not found:
        raise BadInput(f"{origin}: {package} is not installed in this environment; {install}")
    cpu = found.get(f"{package}-cpu")
    version = found[package] if cpu is None else cpu
    return Environment(python, version, cpu is not None or "cpu" in version)
