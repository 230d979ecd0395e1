"""A vLLM plugin that lets vLLM serve MiniMax-M2 on a CPU: the FP8 original, and what quantkit writes for vLLM.

vLLM calls `register` in each of its processes, through the entry point `quantkit_cpu` of the group
`vllm.general_plugins`. Checkpoints go through vLLM's own configuration, loader and unpacking; quantized weights are
dequantized while loading, then vLLM's own unquantized CPU layers take over. So what a server computes is what the file
says, on any processor: vLLM alone has no such kernels without AMX, and with AMX rounds activations to 8 bits.
"""

from __future__ import annotations

import logging

# The plugin hooks into names inside vLLM, which other versions may move: it stands aside where it was not tried.
KNOWN_VERSIONS = ("0.32",)

log = logging.getLogger("vllm.quantkit")  # below vLLM's own logger, whose level and format it takes

_registered = False


def register() -> None:
    """Hook into vLLM where it runs on a CPU and is one of KNOWN_VERSIONS; else say so in the log and do nothing.

    Calling it again does nothing.
    """
    global _registered  # noqa: PLW0603
    if _registered:
        return
    _registered = True
    from vllm import __version__
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        log.info("quantkit's CPU plugin is off: vLLM runs on %s", current_platform.device_name)
        return
    if ".".join(__version__.split(".")[:2]) not in KNOWN_VERSIONS:
        known = " and ".join(f"{version}.x" for version in KNOWN_VERSIONS)
        log.warning("quantkit's CPU plugin is off: it knows vLLM %s, this is %s", known, __version__)
        return
    from quantkit.vllm_plugin import fp8, integers, routing

    routing.hook()
    fp8.hook()
    integers.hook()
    log.info("quantkit's CPU plugin is on: quantized weights are dequantized while loading")
