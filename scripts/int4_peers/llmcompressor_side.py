"""llm-compressor's side of the comparison; runs in the environment of scripts/setup_llmcompressor, without quantkit.

    llmcompressor_side.py calibrated CHECKPOINT TOKENS OUT SETTINGS.json RESULT.json
    llmcompressor_side.py model_free CHECKPOINT OUT SETTINGS.json RESULT.json
    llmcompressor_side.py solve INPUTS.safetensors SETTINGS.json RESULT.json

`calibrated` runs `oneshot` with GPTQModifier, AWQModifier or both on a float checkpoint; TOKENS holds `ids` and
`starts`, each document is a batch of its own without padding. `model_free` runs `model_free_ptq` on an FP8 checkpoint.
Both quantize the experts only. `solve` runs GPTQ's `quantize_weight` alone on the weights and Hessians of
solve_inputs.py, one matrix after the other as GPTQModifier does without an accelerator. RESULT gets the seconds.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.entrypoints.convert import FP8BlockDequantizer
from compressed_tensors.quantization import ActivationOrdering, QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from llmcompressor import model_free_ptq, oneshot
from llmcompressor.modeling.moe.linearize import load_quantizable_moe
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

EXPERTS = r"re:.*mlp\.experts\.\d+\.(gate|up|down)_proj$"
NOT_EXPERTS = ["lm_head", "model.embed_tokens", "re:.*self_attn.*", "re:.*gate$"]
# The router sees the smoothed input too, so it belongs to the balance layers (llm-compressor's own MoE default).
SMOOTHED = [
    AWQMapping(
        "re:.*post_attention_layernorm$",
        ["re:.*mlp.gate$", r"re:.*mlp.experts.*.gate_proj$", r"re:.*mlp.experts.*.up_proj$"],
    ),
    AWQMapping("re:.*up_proj$", ["re:.*down_proj$"]),
]


def scheme(settings: dict[str, Any], targets: list[str]) -> QuantizationScheme:
    weights = QuantizationArgs(
        num_bits=4,
        type="int",
        strategy="group",
        group_size=settings["group_size"],
        symmetric=settings["symmetric"],
        dynamic=False,
        observer=settings.get("observer"),
    )
    return QuantizationScheme(targets=targets, weights=weights)


def documents(tokens: Path) -> Iterator[dict[str, torch.Tensor]]:
    held = load_file(tokens)
    starts = held["starts"].tolist()
    for first, end in zip(starts, starts[1:]):
        yield {"input_ids": held["ids"][first:end].long()[None]}


def recipe(settings: dict[str, Any]) -> list[Any]:
    groups = {"group_0": scheme(settings, [EXPERTS])}
    smoothing = [AWQModifier(mappings=SMOOTHED)] if "awq" in settings["methods"] else []
    rounding = GPTQModifier if "gptq" in settings["methods"] else QuantizationModifier
    options = settings.get("options", {})
    return [*smoothing, rounding(config_groups=groups, ignore=NOT_EXPERTS, **options)]


def calibrated(checkpoint: Path, tokens: Path, out: Path, settings: dict[str, Any]) -> dict[str, float]:
    # AWQModifier pins cached batches for the copy to an accelerator and fails without one; on a CPU nothing is copied.
    IntermediatesCache.pin_memory = lambda *_: None
    start = time.perf_counter()
    with load_quantizable_moe():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, settings["dtype"]))
    loaded = time.perf_counter()
    oneshot(
        model=model,
        recipe=recipe(settings),
        dataset=DataLoader(list(documents(tokens)), batch_size=None),
        moe_calibrate_all_experts=settings.get("all_experts", True),
    )
    quantized = time.perf_counter()
    model.save_pretrained(out, save_compressed=True)
    return {"load": loaded - start, "quantize": quantized - loaded, "save": time.perf_counter() - quantized}


def model_free(checkpoint: Path, out: Path, settings: dict[str, Any]) -> dict[str, float]:
    start = time.perf_counter()
    model_free_ptq(
        checkpoint,
        out,
        scheme=scheme(settings, ["Linear"]),
        ignore=NOT_EXPERTS,
        max_workers=settings["workers"],
        device="cpu",
        converter=FP8BlockDequantizer(targets=[r"re:.*experts\.\d+\.w[123]$", r"re:.*self_attn\.[qkvo]_proj$"]),
    )
    return {"quantize": time.perf_counter() - start}


def solve(inputs: Path, settings: dict[str, Any]) -> dict[str, Any]:
    held = load_file(inputs)
    arguments = scheme(settings, ["Linear"]).weights.model_copy(update={"actorder": ActivationOrdering.STATIC})
    torch.set_num_threads(settings["threads"])
    quantize_one({name: tensor[:128, :128].contiguous() for name, tensor in held.items()}, "0.w1", arguments)
    seconds, losses = 0.0, []
    for expert in range(settings["experts"]):
        spent, lost = zip(*(quantize_one(held, f"{expert}.{name}", arguments) for name in ("w1", "w3", "w2")))
        seconds += sum(spent)
        losses.append([lost[0] + lost[1], lost[2]])
    return {"seconds": seconds, "losses": losses}


def quantize_one(held: dict[str, torch.Tensor], name: str, arguments: QuantizationArgs) -> tuple[float, float]:
    """Seconds of `quantize_weight` alone, and tr(dW H dW^T)."""
    weight = held[name]
    expert, matrix = name.split(".")
    hessian = held[f"{expert}.{'middle' if matrix == 'w2' else 'entering'}"]
    groups = weight.unflatten(1, (-1, arguments.group_size))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    batch = [weight.clone()[None], hessian.clone()[None], scale[None], zero[None]]  # it overwrites them
    start = time.perf_counter()
    with torch.no_grad():
        quantized, _, failed = quantize_weight(*batch, None, arguments)
    seconds = time.perf_counter() - start
    assert not failed.any()
    lost = weight - quantized[0]
    return seconds, float(((lost @ hessian) * lost).sum(dtype=torch.float64))


def main() -> None:
    command, *paths, settings, result = sys.argv[1:]
    runs = {"calibrated": calibrated, "model_free": model_free, "solve": solve}
    seconds = runs[command](*map(Path, paths), json.loads(Path(settings).read_text()))
    Path(result).write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
