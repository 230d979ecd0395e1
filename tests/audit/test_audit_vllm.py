"""The matching of rules beside vLLM's own functions, run in its own environment."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantkit.audit.quantization import read_quantization
from quantkit.audit.vllm_rules import Refused, Stored, builds_quantized, units
from quantkit.checkpoint.header import TensorEntry

sys.path.append(str(Path(__file__).resolve().parents[1] / "servers"))
from vllm_server import vllm_environment, vllm_python

# Answers true, false, or null where vLLM raises, for every unit of every configuration.
ORACLE = r"""
import json, sys
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.quantization.fp8 import Fp8Config
from vllm.model_executor.layers.quantization.utils.gptq_utils import get_dynamic_override, is_layer_gptq_quantized
from vllm.model_executor.layers.quantization.utils.quant_utils import is_layer_skipped
from vllm.model_executor.models.minimax_m2 import MiniMaxM2ForCausalLM as M2

FUSED = M2.packed_modules_mapping
MAPPER = M2.hf_to_vllm_mapper.get_rename_mapper()

def of_class(name):
    return type(name, (), {})()

def awq(values, name, kind, plain, packed):
    config = AutoAWQConfig.from_config(values)
    if not config.modules_to_not_convert:
        config.modules_to_not_convert = plain
    config.apply_vllm_mapper(MAPPER)
    fused = {} if kind == "RoutedExperts" else FUSED
    if kind == "ParallelLMHead" and not config.lm_head_quantized:
        return False
    return not is_layer_skipped(name, config.modules_to_not_convert, fused, match_mode="substring")

def gptq(values, name, kind, plain, packed):
    config = AutoGPTQConfig.from_config(values)
    named = config.modules_in_block_to_quantize or packed
    # What vLLM does when it has the folder's name, which it asks for headers otherwise.
    config.modules_in_block_to_quantize = sum(named, []) if isinstance(named[0], list) else named
    config.apply_vllm_mapper(MAPPER)
    if kind == "ParallelLMHead" and not config.lm_head_quantized:
        return False
    if get_dynamic_override(config, name) is False:
        return False
    return kind == "RoutedExperts" or is_layer_gptq_quantized(name, config.modules_in_block_to_quantize, FUSED)

def compressed(values, name, kind, plain, packed):
    config = CompressedTensorsConfig.from_config(values)
    config.packed_modules_mapping = FUSED
    config.apply_vllm_mapper(MAPPER)
    if kind != "RoutedExperts":
        return config.get_scheme_dict(of_class(kind), name) is not None
    config._add_fused_moe_to_target_scheme_map()
    found = [config.get_scheme_dict(of_class(kind), f"{name}.0.{matrix}") for matrix in ("w1", "w3", "w2")]
    if any(one != found[0] for one in found):
        raise ValueError("several schemes")
    return found[0] is not None

def fp8(values, name, kind, plain, packed):
    config = Fp8Config.from_config(values)
    config.apply_vllm_mapper(MAPPER)
    if kind == "ParallelLMHead":
        return False
    return not is_layer_skipped(name, config.ignored_layers, FUSED, match_mode=config.ignored_layers_match_mode)

FUNCTIONS = {"awq": awq, "gptq": gptq, "compressed-tensors": compressed, "fp8": fp8}
answers = []
for values, plain, packed, modules in json.load(open(sys.argv[1])):
    row = []
    for name, kind in modules:
        try:
            row.append(FUNCTIONS[values["quant_method"]](json.loads(json.dumps(values)), name, kind, plain, packed))
        except ValueError:
            row.append(None)
    answers.append(row)
json.dump(answers, open(sys.argv[2], "w"))
"""

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128, "dynamic": False}
INT8 = INT4 | {"num_bits": 8}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def compressed(
    ignore: list[str], *targets: list[str], weights: tuple[dict[str, Any], ...] = (INT4, INT8)
) -> dict[str, Any]:
    groups = {f"group_{n}": {"targets": names, "weights": weights[n]} for n, names in enumerate(targets)}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ignore, "config_groups": groups}


EXPERTS = r"re:.*\.experts\.\d+\.w[123]$"
CONFIGURATIONS = [
    *(AWQ | {"modules_to_not_convert": rules} for rules in (
        ["self_attn", "block_sparse_moe.gate", ".mlp.gate", "lm_head"],
        ["gate", "lm_head"],
        ["model.layers.1.self_attn", "model.layers.1.mlp"],
        ["layers.1"],
        ["layers.1."],
        ["q_proj"],
        ["qkv_proj", "block_sparse_moe"],
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"],
        ["mlp.experts"],
        ["model.layers.0.block_sparse_moe.experts"],
        ["experts", "self_attn.o_proj"],
        [],
    )),
    AWQ | {"modules_to_not_convert": ["self_attn"], "lm_head": True},
    *(GPTQ | {"dynamic": rules} for rules in (
        {},
        {"-:.*self_attn.*": {}, "-:.*gate$": {}, "-:lm_head": {}},
        {r"-:.*layers\.1\.(mlp|block_sparse_moe)\.experts.*": {}},
        {r"-:.*layers\.1\.block_sparse_moe\.experts.*": {}},
        {"-:self_attn": {}},
        {"+:.*experts.*": {"bits": 8}, "-:.*experts.*": {}},
        {".*o_proj": {"group_size": 64}, "-:.*o_proj": {}},
        {"-:.*q_proj": {}},
    )),
    GPTQ | {"modules_in_block_to_quantize": [["self_attn.q_proj", "self_attn.k_proj"], ["w1"]]},
    GPTQ | {"modules_in_block_to_quantize": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]},
    GPTQ | {"lm_head": True, "modules_in_block_to_quantize": ["lm_head"]},
    compressed(["lm_head"], ["Linear"]),
    compressed(["lm_head", "re:.*self_attn.*", "re:.*gate$"], ["Linear"]),
    compressed(["lm_head", "re:.*self_attn.*"], [EXPERTS]),
    compressed(["lm_head"], [r"re:.*block_sparse_moe\.experts\.\d+\.w[123]$"]),
    compressed(["lm_head"], [r"re:.*self_attn\.(q|k|v|o)_proj$"], [EXPERTS]),
    compressed([r"re:.*layers\.1\.(mlp|block_sparse_moe)\..*"], ["Linear"]),
    compressed([r"re:.*layers\.1\.block_sparse_moe\..*"], ["Linear"]),
    compressed(["model.layers.0.self_attn.q_proj"], ["Linear"]),
    compressed([f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"], ["Linear"]),
    compressed([], [r"re:.*experts\.\d+\.w[13]$"], [r"re:.*experts\.\d+\.w2$"]),
    compressed([], [r"re:.*experts\.\d+\.w[13]$"], [r"re:.*experts\.\d+\.w2$"], weights=(INT4, INT4)),
    compressed([], [r"re:.*experts\.\d+\.w[13]$"]),
    compressed([], ["model.layers.0.self_attn.o_proj", "RoutedExperts"]),
    compressed([], ["QKVParallelLinear"], ["re:Routed.*"]),
    compressed([], ["MiniMaxAttention"]),
    *(FP8 | {"modules_to_not_convert": rules} for rules in (
        ["gate", "e_score_correction_bias", "lm_head"],
        ["model.layers.0.self_attn.q_proj"],
        [f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"],
        ["model.layers.1.mlp.experts"],
        ["model.layers.1.block_sparse_moe.experts"],
        ["model.layers.0.self_attn.qkv_proj", "self_attn.o_proj"],
    )),
]  # fmt: skip


def modules_of(packed_attention: bool) -> dict[str, dict[str, TensorEntry]]:
    """Two layers of two experts: experts packed, attention packed in the second layer or nowhere."""

    def entry(name: str, dtype: str) -> TensorEntry:
        return TensorEntry(name, Path("x"), dtype, (8, 8), 0, 0)

    names: dict[str, str] = {"model.embed_tokens.weight": "BF16", "model.norm.weight": "BF16", "lm_head.weight": "BF16"}
    for layer in range(2):
        base = f"model.layers.{layer}."
        packed = packed_attention and layer == 1
        for name in "qkvo":
            names[f"{base}self_attn.{name}_proj." + ("qweight" if packed else "weight")] = "I32" if packed else "BF16"
        names[f"{base}block_sparse_moe.gate.weight"] = "F32"
        names[f"{base}block_sparse_moe.e_score_correction_bias"] = "F32"
        for expert in range(2):
            names |= {f"{base}block_sparse_moe.experts.{expert}.w{n}.qweight": "I32" for n in (1, 2, 3)}
    found: dict[str, dict[str, TensorEntry]] = {}
    for name, dtype in names.items():
        module, _, suffix = name.rpartition(".")
        found.setdefault(module, {})[suffix] = entry(name, dtype)
    return found


def ours(values: dict[str, Any], modules: dict[str, dict[str, TensorEntry]]) -> list[bool | None]:
    quantization = read_quantization({"config.json": {"quantization_config": values}})
    row: list[bool | None] = []
    for unit in units(range(2), 2):
        try:
            row.append(builds_quantized(quantization, unit, Stored(modules)))
        except Refused:
            row.append(None)
    return row


@pytest.mark.full
def test_rules_match_as_in_vllm(tmp_path: Path) -> None:
    cases = [(values, modules_of(packed)) for values in CONFIGURATIONS for packed in (False, True)]
    named = [(unit.name, unit.kind) for unit in units(range(2), 2)]
    asked = []
    for values, modules in cases:
        packed = [name for name, parts in modules.items() if any(entry.dtype == "I32" for entry in parts.values())]
        asked.append((values, [name for name in modules if name not in packed], packed, named))
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    script = tmp_path / "oracle.py"
    script.write_text(ORACLE)
    command = [vllm_python(), str(script), str(tmp_path / "asked.json"), str(tmp_path / "answers.json")]
    done = subprocess.run(command, env=vllm_environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads((tmp_path / "answers.json").read_text())
    for (values, modules), answer in zip(cases, answers, strict=True):
        assert ours(values, modules) == answer, values
    flat = [one for row in answers for one in row]
    assert {True, False, None} == set(flat)
