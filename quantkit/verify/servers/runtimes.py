"""The one table of runtimes: what starts each for MiniMax-M2, how it spells its options, what it loads.

`quantkit verify` starts servers and `quantkit serve` prints commands from it, so both are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

VLLM, LLAMA_CPP, SGLANG, OLLAMA, KTRANSFORMERS = "vllm", "llama.cpp", "sglang", "ollama", "ktransformers"

# What MiniMax recommends, as in the checkpoint's generation_config.json.
SAMPLING = {"temperature": 1.0, "top_p": 0.95, "top_k": 40}
# The last layer's activations overflow half precision, the default of AWQ files.
DTYPE = "bfloat16"

MINUTE = 60.0

# Products of models below so many bytes are too short to divide: threads would wait for each other most of the time.
ONE_THREAD_BELOW = 2**30


@dataclass(frozen=True)
class Runtime:
    """One runtime. `options` is its spelling of what a caller sets, `fixed` what M2 always needs there.

    `module` is run with Python's -m; runtimes without one are programs called `program`. A server that writes nothing
    into its log for `silent_seconds` while loading, or loads for `longest_seconds`, is given up.
    """

    name: str
    module: str | None = None
    program: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    on_cpu: tuple[str, ...] = ()  # what a build for CPUs needs beside
    variable: str = ""  # names the environment or the folder of programs to start it from
    image: str | None = None  # for docker, with a GPU
    cpu_image: str | None = None
    port: int = 8000
    notes: tuple[str, ...] = ()
    silent_seconds: float = 15 * MINUTE
    longest_seconds: float = 6 * 60 * MINUTE


RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            VLLM,
            # Not `vllm serve`, which dies in the CPU build: it looks for a package called vllm.
            module="vllm.entrypoints.openai.api_server",
            options={
                "model": "--model",
                "name": "--served-model-name",
                "host": "--host",
                "port": "--port",
                "context": "--max-model-len",
                "tensor_parallel": "--tensor-parallel-size",
            },
            fixed=(
                "--dtype",
                DTYPE,
                "--enable-auto-tool-choice",
                "--tool-call-parser",
                "minimax_m2",
                # Not minimax_m2_append_think: thoughts in the content hide answers that are nothing but thoughts.
                "--reasoning-parser",
                "minimax_m2",
                # Contents as text: templates that loop over a content are taken for ones that want lists of parts.
                "--chat-template-content-format",
                "string",
            ),
            # It would take 92 % of the memory.
            on_cpu=("--gpu-memory-utilization", "0.3"),
            variable="QUANTKIT_VLLM",
            image="vllm/vllm-openai:v0.32.0",
            notes=("sampling defaults come from the checkpoint's generation_config.json",),
        ),
        Runtime(
            SGLANG,
            module="sglang.launch_server",
            options={
                "model": "--model-path",
                "name": "--served-model-name",
                "host": "--host",
                "port": "--port",
                "context": "--context-length",
                "tensor_parallel": "--tp-size",
            },
            # Hyphens where vLLM has underscores. No --quantization: it is read from config.json.
            fixed=("--dtype", DTYPE, "--tool-call-parser", "minimax-m2", "--reasoning-parser", "minimax"),
            variable="QUANTKIT_SGLANG",
            image="lmsysorg/sglang:latest",
            port=30000,
            notes=("needs SGLang 0.5.4.post1 or newer",),
        ),
        Runtime(
            LLAMA_CPP,
            program="llama-server",
            options={
                "model": "--model",
                "name": "--alias",
                "host": "--host",
                "port": "--port",
                "context": "--ctx-size",
                "slots": "--parallel",
            },
            # The parsers for calls and thoughts are derived from the template inside of the GGUF.
            fixed=("--jinja", "--reasoning-format", "auto"),
            variable="QUANTKIT_LLAMA_CPP",
            image="ghcr.io/ggml-org/llama.cpp:server-cuda",
            cpu_image="ghcr.io/ggml-org/llama.cpp:server",
            port=8080,
            notes=(
                "clients must send reasoning_content back, or interleaved thinking is lost",
                "layers that the GPUs have no memory for stay on the CPU by themselves",
            ),
            silent_seconds=30 * MINUTE,  # a warm-up reads all of the file without a word
        ),
        Runtime(
            OLLAMA,
            program="ollama",
            image="ollama/ollama",
            port=11434,
            notes=("Ollama may have no parser for M2's tool calls: they then stay in the text; llama.cpp has one",),
        ),
        Runtime(
            KTRANSFORMERS,
            module="sglang.launch_server",
            port=30000,
            notes=("wants 32 GB of GPU memory, 256 GB of RAM and a processor with AVX-512",),
        ),
    )
}


def options(runtime: Runtime, **values: str | int | None) -> list[str]:
    """Return the runtime's spelling of `values`, then what M2 always needs; None leaves an option out."""
    # In two words each: llama-server does not know --option=value.
    given = ((runtime.options[name], str(value)) for name, value in values.items() if value is not None)
    return [*(word for pair in given for word in pair), *runtime.fixed]
