"""The arguments of servers that load a checkpoint's folder, for `quantkit verify` and `quantkit serve` alike."""

from __future__ import annotations

from quantkit.verify.servers.parallel import Parallel
from quantkit.verify.servers.runtimes import VLLM, Runtime, options


def checkpoint_arguments(
    runtime: Runtime,
    model: str,
    name: str,
    *,
    host: str,
    port: int,
    context: int | None = None,
    parallel: Parallel | None = None,
) -> list[str]:
    """Return the arguments of vLLM or SGLang for the folder `model`, which clients call `name`.

    `parallel` is None where there are no GPUs.
    """
    gpus = parallel.gpus if parallel is not None else 1
    arguments = options(
        runtime,
        model=model,
        name=name,
        host=host,
        port=port,
        context=context,
        tensor_parallel=gpus if gpus > 1 else None,
    )
    if parallel is not None and parallel.experts:
        arguments += ["--enable-expert-parallel"] if runtime.name == VLLM else ["--ep-size", str(gpus)]
    return arguments
