"""What `quantkit serve` prints and runs: a command, and the files that containers and Ollama want."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.errors import BadInput
from quantkit.verify.servers import sglang, vllm
from quantkit.verify.servers.command import checkpoint_arguments
from quantkit.verify.servers.compose import compose_file
from quantkit.verify.servers.environments import find_environment, given, visible_gpus
from quantkit.verify.servers.gpus import Gpus, check_memory, parse_gpus
from quantkit.verify.servers.llama_cpp import EMBEDDED, llama_server
from quantkit.verify.servers.loads import BF16, GGUF, UNTRIED, Served, check_loads, look_at
from quantkit.verify.servers.parallel import Parallel, choose_parallel, dimensions, legal_counts, most_gpus
from quantkit.verify.servers.process import HOST
from quantkit.verify.servers.runtimes import (
    KTRANSFORMERS,
    LLAMA_CPP,
    OLLAMA,
    RUNTIMES,
    SAMPLING,
    SGLANG,
    VLLM,
    Runtime,
    options,
)

# Tokens of prompt and answer where a runtime wants to be told: agents' prompts are long.
CONTEXT = 65_536
PYTHON = "python"
ORIGINAL = "MiniMaxAI/MiniMax-M2.7"
IN_CONTAINER = "/models"
EVERYWHERE = "0.0.0.0"
INSTALLS = {VLLM: vllm.INSTALL, SGLANG: sglang.INSTALL}


@dataclass(frozen=True)
class Serving:
    """How to serve a model with one engine. `before` are commands to give once, `command` the one that serves."""

    engine: str
    kind: str
    command: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    compose: str | None = None
    modelfile: str | None = None
    notes: tuple[str, ...] = ()


def plan_serving(path: Path, engine: str | None, gpus: str | None, *, to_run: bool) -> Serving:
    """Return how to serve `path` (a folder or a GGUF) with `engine` on `gpus` such as "4xH100".

    None: llama.cpp for a GGUF and vLLM for a folder, on the GPUs of this machine. With `to_run` the programs must be
    here, else their names are printed where they are not. Raises BadInput for what cannot work.
    """
    if engine is not None and engine not in RUNTIMES:
        raise BadInput(f"--engine {engine}: no such engine; choose {', '.join(RUNTIMES)}")
    served = look_at(path)
    engine = engine or (LLAMA_CPP if served.kind == GGUF else VLLM)
    check_loads(engine, served)
    wanted = parse_gpus(gpus) if gpus is not None else None
    if engine == OLLAMA:
        return _ollama(served, to_run)
    if engine == LLAMA_CPP:
        return _llama_cpp(served, wanted, to_run)
    if engine == KTRANSFORMERS:
        return _ktransformers(served, wanted, to_run)
    return _checkpoint(engine, served, wanted, to_run)


def _checkpoint(engine: str, served: Served, wanted: Gpus | None, to_run: bool) -> Serving:
    runtime = RUNTIMES[engine]
    python, is_cpu_build = _python(runtime, wanted, to_run)
    parallel = _parallel(served, wanted, 0 if is_cpu_build else visible_gpus())
    if parallel is None and engine == SGLANG:
        raise BadInput("--engine sglang: no GPU here; name those of the machine to serve on, --gpus 4xH100")
    assert runtime.module is not None

    def arguments(model: str, host: str) -> list[str]:
        given_options = checkpoint_arguments(
            runtime, model, served.name, host=host, port=runtime.port, parallel=parallel
        )
        return given_options + ([] if parallel else list(runtime.on_cpu))

    notes = _notes(runtime, served)
    compose = None
    if parallel is not None:
        inside = f"{IN_CONTAINER}/{served.name}"
        entry = ["python3", "-m", runtime.module]
        compose = compose_file(runtime, entry, arguments(inside, EVERYWHERE), served.path, inside, parallel.gpus)
    else:
        notes += ("without GPUs: for checking files and small models; --gpus 4xH100 is for another machine",)
    command = (python, "-m", runtime.module, *arguments(str(served.path), HOST))
    return Serving(engine, served.kind, command, environment={"HF_HUB_OFFLINE": "1"}, compose=compose, notes=notes)


def _python(runtime: Runtime, wanted: Gpus | None, to_run: bool) -> tuple[str, bool]:
    """The interpreter to start the runtime with, and whether what is installed there is for CPUs."""
    try:
        environment = find_environment(runtime.name, None, runtime.variable, INSTALLS[runtime.name])
    except BadInput:
        if to_run:
            raise
        return PYTHON, False
    if not (environment.is_cpu_build and wanted):
        return str(environment.python), environment.is_cpu_build
    if to_run:
        raise BadInput(
            f"--gpus: {runtime.name} in {environment.python} is a build for CPUs; name the environment of one for "
            f"GPUs in ${runtime.variable}"
        )
    return PYTHON, False


def _parallel(served: Served, wanted: Gpus | None, visible: int) -> Parallel | None:
    if wanted is None:
        return most_gpus(served.path, visible) if visible else None
    parallel = choose_parallel(served.path, wanted.count)
    check_memory(served.nbytes, wanted, legal_counts(*dimensions(served.path)))
    return parallel


def _llama_cpp(served: Served, wanted: Gpus | None, to_run: bool) -> Serving:
    runtime = RUNTIMES[LLAMA_CPP]
    sampling = ["--temp", f"{SAMPLING['temperature']}", "--top-p", f"{SAMPLING['top_p']}"]
    sampling += ["--top-k", f"{SAMPLING['top_k']}"]

    def arguments(model: str, host: str) -> list[str]:
        common = options(runtime, model=model, name=served.name, host=host, port=runtime.port, context=CONTEXT, slots=1)
        return common + sampling

    inside = f"{IN_CONTAINER}/{served.path.name}"
    count = wanted.count if wanted else visible_gpus()
    compose = compose_file(runtime, None, arguments(inside, EVERYWHERE), served.path.parent, IN_CONTAINER, count)
    command = (*_llama_program(to_run), *arguments(str(served.path), HOST))
    return Serving(LLAMA_CPP, served.kind, command, compose=compose, notes=_notes(runtime, served))


def _llama_program(to_run: bool) -> tuple[str, ...]:
    runtime = RUNTIMES[LLAMA_CPP]
    named = given(runtime.variable)
    if named is not None:
        return (str(llama_server(named)),)
    if not to_run or shutil.which(runtime.program):
        return (runtime.program,)
    return EMBEDDED


def _ollama(served: Served, to_run: bool) -> Serving:
    if to_run:
        raise BadInput("--engine ollama: Ollama serves from a store of its own; see what to do with --print")
    runtime = RUNTIMES[OLLAMA]
    name = served.name.lower()
    source = served.path.absolute()
    before: list[tuple[str, ...]] = [("ollama", "create", name, "-f", "Modelfile")]
    notes = _notes(runtime, served)
    if len(served.files) > 1:
        source = source.with_name(f"{served.name}.gguf")
        before.insert(0, ("llama-gguf-split", "--merge", str(served.path), str(source)))
        notes += ("Ollama loads single files only: the parts are merged first, which takes their size once more",)
    parameters = {**SAMPLING, "num_ctx": CONTEXT}
    lines = [f"FROM {source}", *(f"PARAMETER {key} {value}" for key, value in parameters.items())]
    return Serving(
        OLLAMA,
        served.kind,
        (runtime.program, "run", name),
        before=tuple(before),
        modelfile="\n".join(lines) + "\n",
        notes=notes,
    )


def _ktransformers(served: Served, wanted: Gpus | None, to_run: bool) -> Serving:
    if to_run:
        raise BadInput("--engine ktransformers: its numbers depend on the machine; see the command with --print")
    runtime, launcher = RUNTIMES[KTRANSFORMERS], RUNTIMES[SGLANG]
    notes = _notes(runtime, served)
    is_gguf = served.kind == GGUF
    method = {GGUF: "LLAMAFILE", BF16: "BF16"}.get(served.kind, "FP8")
    model = ORIGINAL if is_gguf else str(served.path)
    weights = str(served.path.parent) if is_gguf else model
    parallel = Parallel(1)
    if wanted is not None and is_gguf:
        parallel = Parallel(wanted.count)
        notes += ("the GPUs hold parts of the original checkpoint: its tensor-parallel limits apply",)
    elif wanted is not None:
        parallel = choose_parallel(served.path, wanted.count)
    if parallel.experts:
        raise BadInput(
            f"--gpus {parallel.gpus}: KTransformers cuts every matrix, which its FP8 blocks do not allow; give fewer"
        )
    arguments = checkpoint_arguments(launcher, model, served.name, host=HOST, port=runtime.port, parallel=parallel)
    experts = ["--kt-method", method, "--kt-weight-path", weights, "--kt-cpuinfer", str(os.cpu_count() or 1)]
    experts += ["--kt-threadpool-count", "2", "--kt-num-gpu-experts", "0"]
    notes += (
        "--kt-cpuinfer is the number of processor cores, --kt-threadpool-count that of memory nodes",
        "raise --kt-num-gpu-experts until the GPUs' memory is full",
    )
    assert runtime.module is not None
    return Serving(KTRANSFORMERS, served.kind, (PYTHON, "-m", runtime.module, *arguments, *experts), notes=notes)


def _notes(runtime: Runtime, served: Served) -> tuple[str, ...]:
    untried = (f"{runtime.name} with {served.kind} was not tried",) if (runtime.name, served.kind) in UNTRIED else ()
    return (*runtime.notes, *untried)
