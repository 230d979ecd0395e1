"""How each runtime serves the files of a repo, out of the table that `quantkit serve` and `quantkit verify` use."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from quantkit.hub.card.facts import INT4, GpuFacts, QuantFacts
from quantkit.hub.card.files_table import gigabytes
from quantkit.verify.report.markdown_text import bullets, fence, plain, section
from quantkit.verify.servers.command import checkpoint_arguments
from quantkit.verify.servers.gpus import FOR_WEIGHTS, GB, MEMORY_GB
from quantkit.verify.servers.loads import REFUSED, UNTRIED
from quantkit.verify.servers.parallel import Parallel
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
from quantkit.verify.servers.serving import CONTEXT, PYTHON

# GPUs that most people share such a model on, taken where the checkpoint allows it.
USUAL_GPUS = 4
WHOLE_NODE = 8
_SHOWN_GPUS = ("A100", "H100", "H200", "B200", "RTX6000")
_LINE = 400
TITLES = {VLLM: "vLLM", SGLANG: "SGLang", LLAMA_CPP: "llama.cpp", OLLAMA: "Ollama", KTRANSFORMERS: "KTransformers"}


def run_section(facts: Sequence[QuantFacts], repo: str) -> str:
    """A command per runtime that loads such files, what to know of it, and the runtimes that do not load them."""
    one = _chosen(facts)
    blocks = [_runtime(RUNTIMES[name], one, repo) for name in (VLLM, SGLANG, LLAMA_CPP, OLLAMA)]
    refused = [f"{TITLES[name]} does not load these files." for name in RUNTIMES if (name, one.loads) in REFUSED]
    sampling = ", ".join(f"{name} {value:g}" for name, value in SAMPLING.items())
    about = [
        f"Sampling that MiniMax recommends: {sampling}.",
        "The model thinks between its tool calls (interleaved thinking). A client has to send the reasoning of earlier "
        "turns back, as reasoning_content or inside of <think> in the content: without it later turns lose it, and "
        "answers with tools get worse.",
    ]
    if one.kind == INT4:
        about.append("Serve in bfloat16, not float16: activations of the last layer overflow half precision.")
    return section("How to run", bullets([*about, *refused], _LINE), *blocks)


def memory_section(facts: Sequence[QuantFacts]) -> str:
    """What the weights and the context take, and which GPUs share them."""
    lines = []
    for one in sorted(facts, key=lambda one: one.size):
        fits = _fits(one)
        tail = f"; with room for requests that fits {', '.join(fits)}" if fits else ""
        lines.append(f"{one.name}: the weights take {gigabytes(one.size)}{tail}.")
    one = facts[0]
    whole = f", {gigabytes(one.cache_bytes * one.context)} for all of its {one.context:,}" if one.context else ""
    lines.append(f"Keys and values take {gigabytes(one.cache_bytes)} per token of context in 16 bits{whole}.")
    if one.gpus is not None:
        lines += _sharing(one.gpus)
    else:
        lines.append(
            "llama.cpp leaves layers on the processor that the GPUs have no memory for: memory of both counts."
        )
    return section("Memory and GPUs", bullets(lines, _LINE))


def _chosen(facts: Sequence[QuantFacts]) -> QuantFacts:
    """The quantization of the examples: the default of llama.cpp where it is here, else the largest."""
    return next((one for one in facts if one.name == "Q4_K_M"), max(facts, key=lambda one: one.size))


def _runtime(runtime: Runtime, facts: QuantFacts, repo: str) -> str:
    if (runtime.name, facts.loads) in REFUSED:
        return ""
    commands = {
        LLAMA_CPP: _llama_cpp,
        OLLAMA: _ollama,
    }.get(runtime.name, _checkpoint)(runtime, facts, repo)
    notes = list(runtime.notes)
    if (runtime.name, facts.loads) in UNTRIED:
        notes.append(f"{TITLES[runtime.name]} with {facts.loads} was not tried")
    block = f"### {TITLES[runtime.name]}\n\n{fence(chr(10).join(map(_wrapped, commands)))}"
    return f"{block}\n\n{bullets(notes, _LINE)}" if notes else block


def _checkpoint(runtime: Runtime, facts: QuantFacts, repo: str) -> list[list[str]]:
    assert runtime.module is not None
    start = [PYTHON, "-m", runtime.module]
    gpus = facts.gpus or GpuFacts((1,), ())
    shared = [Parallel(USUAL_GPUS if USUAL_GPUS in gpus.tensor_parallel else max(gpus.tensor_parallel))]
    if WHOLE_NODE in gpus.expert_parallel:
        shared.append(Parallel(WHOLE_NODE, experts=True))
    return [
        [*start, *checkpoint_arguments(runtime, repo, facts.model, host=HOST, port=runtime.port, parallel=parallel)]
        for parallel in shared
    ]


def _llama_cpp(runtime: Runtime, facts: QuantFacts, repo: str) -> list[list[str]]:
    sampling = ["--temp", f"{SAMPLING['temperature']}", "--top-p", f"{SAMPLING['top_p']}"]
    sampling += ["--top-k", f"{SAMPLING['top_k']}"]
    served = options(runtime, name=facts.model, host=HOST, port=runtime.port, context=CONTEXT, slots=1)
    return [[runtime.program, "-hf", f"{repo}:{facts.name}", *served, *sampling]]


def _ollama(runtime: Runtime, facts: QuantFacts, repo: str) -> list[list[str]]:
    if len(facts.files) == 1:
        return [[runtime.program, "run", f"hf.co/{repo}:{facts.name}"]]
    name = facts.model.lower()
    merged = f"{facts.model}-{facts.name}.gguf"
    return [
        ["hf", "download", repo, "--include", f"*{facts.name}-*.gguf", "--local-dir", "."],
        ["llama-gguf-split", "--merge", facts.files[0].path, merged],
        ["echo", f"FROM ./{merged}", ">", "Modelfile"],
        [runtime.program, "create", name, "-f", "Modelfile"],
        [runtime.program, "run", name],
    ]


def _wrapped(words: Sequence[str]) -> str:
    """A command for a shell on several lines, an option to a line where it is long."""
    text = " ".join(word if word == ">" else shlex.quote(word) for word in words)
    if len(text) <= 100:
        return text
    return text.replace(" --", " \\\n    --").replace(" -hf", " \\\n    -hf")


def _fits(facts: QuantFacts) -> list[str]:
    """The fewest GPUs of some kinds that hold the weights and can share them."""
    if facts.gpus is None:
        return []
    legal = sorted({*facts.gpus.tensor_parallel, *facts.gpus.expert_parallel})
    rooms = {kind: MEMORY_GB[kind] * GB * FOR_WEIGHTS for kind in _SHOWN_GPUS}
    enough = {kind: next((n for n in legal if n * room >= facts.size), None) for kind, room in rooms.items()}
    return [f"{count} x {kind} ({MEMORY_GB[kind]} GB)" for kind, count in enough.items() if count is not None]


def _sharing(gpus: GpuFacts) -> list[str]:
    lines = [f"Tensor parallelism: {_numbers(gpus.tensor_parallel)} GPUs cut every matrix along whole groups."]
    if gpus.expert_parallel:
        lines.append(
            f"{_numbers(gpus.expert_parallel)} GPUs: groups would be cut through; share whole experts out instead "
            "(--enable-expert-parallel in vLLM, --ep-size in SGLang)."
        )
    return lines


def _numbers(numbers: Sequence[int]) -> str:
    return plain(" or ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))) if numbers else "no"
