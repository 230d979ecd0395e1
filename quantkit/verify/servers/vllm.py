"""How vLLM is started to be verified: its own environment, on GPUs or with the CPU build and quantkit's plugin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.checkpoint.index import read_json
from quantkit.model.config import hparams_from_config
from quantkit.verify.servers.command import checkpoint_arguments
from quantkit.verify.servers.environments import find_environment, visible_gpus
from quantkit.verify.servers.parallel import most_gpus
from quantkit.verify.servers.process import HOST, Launch, free_port
from quantkit.verify.servers.runtimes import ONE_THREAD_BELOW, RUNTIMES, VLLM

if TYPE_CHECKING:
    from quantkit.verify.servers.start import ServerSettings

INSTALL = "run scripts/setup_vllm_cpu, or `pip install vllm` on a machine with GPUs"
# Log-probabilities of a prompt are rows of the whole vocabulary in float32: 2048 of them take 1.6 GB for M2.7.
PROMPT_TOKENS = 2048
# Half of the CPU build's time to start: no compilation, no process for a worker.
QUICK = (
    "--enforce-eager",
    "--distributed-executor-backend",
    "vllm.v1.executor.uniproc_executor.UniProcExecutor",
)
# vLLM 0.32 on a CPU dies of a request with a seed whose prompt it has cut ("CPU Generator does not use offset").
WHOLE_PROMPTS = ("--no-enable-chunked-prefill",)
GIB = 1 << 30


def launch(model: Path, settings: ServerSettings) -> Launch:
    """Return how to start vLLM for the checkpoint in the folder `model`. Raises BadInput where vLLM is not found."""
    runtime = RUNTIMES[VLLM]
    environment = find_environment("vllm", settings.programs, runtime.variable, INSTALL)
    port = free_port()
    gpus = 0 if environment.is_cpu_build else visible_gpus()
    arguments = checkpoint_arguments(
        runtime,
        str(model),
        model.resolve().name,
        host=HOST,
        port=port,
        context=settings.context,
        parallel=most_gpus(model, gpus) if gpus else None,
    )
    prompt_tokens = PROMPT_TOKENS
    if environment.is_cpu_build:
        arguments += [*runtime.on_cpu, *QUICK, *WHOLE_PROMPTS]
        prompt_tokens = max(PROMPT_TOKENS, settings.context or 0)
    arguments += ["--max-logprobs", str(settings.top), "--max-num-batched-tokens", str(prompt_tokens)]
    assert runtime.module is not None
    command = (str(environment.python), "-m", runtime.module, *arguments, *settings.arguments)
    return Launch(command, port, _environment(model, settings, environment.is_cpu_build), withheld=("PYTHON",))


def _environment(model: Path, settings: ServerSettings, is_cpu_build: bool) -> dict[str, str]:
    # The model is a folder: nothing is to be asked of the Hub.
    always = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if not is_cpu_build:
        return always
    small = sum(shard.stat().st_size for shard in model.glob("*.safetensors")) < ONE_THREAD_BELOW
    always |= {"OMP_NUM_THREADS": "1"} if small else {}
    return always | {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", _cache_gib(model, settings))}


def _cache_gib(model: Path, settings: ServerSettings) -> str:
    """GiB of keys and values in bfloat16 for all requests that run at the same time, rounded up."""
    config_path = model / "config.json"
    hparams = hparams_from_config(read_json(config_path, "a checkpoint folder needs its config.json"), config_path)
    token_bytes = 2 * 2 * hparams.n_layers * hparams.n_kv_heads * hparams.head_dim
    tokens = (settings.context or hparams.context) * max(1, settings.concurrency)
    return str(-(-tokens * token_bytes // GIB))
