"""Every fault that an audit has to find, planted into a sound model."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import gguf
import torch
from planting import (
    ATTENTION,
    CARD,
    MOE,
    Fault,
    config,
    drop,
    edit,
    first_gguf,
    gguf_keys,
    gguf_types,
    overlapping,
    quantization,
    rename_tensors,
    rewrite,
    swap,
    tensor_twice,
    tensors,
    text,
    truncate,
    unlisted_shard,
    without,
)

INDEX = "model.safetensors.index.json"
EXPERTS_BY_CHECKPOINT_NAME = r"re:.*block_sparse_moe\.experts\.\d+\.w[123]$"
PROJECTIONS = {"1": ".gate_proj.", "2": ".down_proj.", "3": ".up_proj."}
DOWN = "blk.3.ffn_down_exps.weight"


def words(rows: int, columns: int) -> dict[str, torch.Tensor]:
    """A matrix in AWQ's layout, groups of 32."""
    return {
        "qweight": torch.zeros(columns, rows // 8, dtype=torch.int32),
        "qzeros": torch.zeros(columns // 32, rows // 8, dtype=torch.int32),
        "scales": torch.ones(columns // 32, rows, dtype=torch.float16),
    }


def _stack(name: str, value: torch.Tensor) -> dict[str, torch.Tensor] | None:
    if ".experts." not in name:
        return None
    layer = name.split(".")[2]
    return {f"model.layers.{layer}.mlp.experts.gate_up_proj.qweight": value} if ".experts.0.w1.qweight" in name else {}


def _missing_in_shard(folder: Path) -> None:
    """The index goes on listing a tensor that its shard lost."""
    index = (folder / INDEX).read_text()
    drop("model.norm.weight")(folder)
    (folder / INDEX).write_text(index)


def _unlisted_tensor(folder: Path) -> None:
    (folder / INDEX).write_text((folder / INDEX).read_text().replace('"model.norm.weight"', '"model.norm.other"'))


def _gguf_beside(folder: Path) -> None:
    """A GGUF of another model: only where it lies counts here."""
    writer = gguf.GGUFWriter(folder / "other.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _split_part(number: int) -> object:
    return lambda folder: sorted(folder.glob("*.gguf"))[number].unlink()


def _swapped_parts(folder: Path) -> None:
    second, third = sorted(folder.glob("*.gguf"))[1:3]
    aside = folder / "aside"
    second.rename(aside)
    third.rename(second)
    aside.rename(third)


def _one_row(folder: Path) -> None:
    rewrite(first_gguf(folder), **{"blk.0.attn_q.weight": "blk.0.attn_q_other.weight"})


def _target(rule: str) -> object:
    return quantization(lambda values: values["config_groups"]["group_0"].update(targets=[rule]))


def _weights(**values: object) -> object:
    return quantization(lambda found: found["config_groups"]["group_0"]["weights"].update(values))


def _of(**values: object) -> object:
    return quantization(lambda found: found.update(values))


FOLDER_FAULTS = (
    Fault("router-quantized", "awq", swap(MOE + "gate.weight", **words(16, 256))),
    Fault("norm-quantized", "awq", swap("model.layers.0.input_layernorm.weight", weight=torch.zeros(256).char())),
    Fault("bias-missing", "compressed", drop(MOE + "e_score_correction_bias")),
    Fault("bias-narrow", "gptq", tensors(
        lambda name, value: {name: value.bfloat16()} if name.endswith("e_score_correction_bias") else None
    )),
    Fault("experts-missing", "gptq", tensors(lambda name, _: {} if ".experts.7.w2." in name else None)),
    Fault("experts-renamed", "compressed", tensors(
        lambda name, value: {re.sub(r"\.w([123])\.", lambda match: PROJECTIONS[match[1]], name): value}
    )),
    Fault("experts-stacked", "gptq", tensors(_stack)),
    Fault("tensors-missing", "awq", drop(ATTENTION + "k_norm.weight")),
    Fault("embedding-quantized", "awq", swap("model.embed_tokens.weight", **words(4096, 256))),
    Fault("shape", "awq", config(vocab_size=8192)),
    Fault("layer-count", "awq", config(num_hidden_layers=3)),
    Fault("expert-count", "gptq", config(num_local_experts=8), frozenset({"shape"})),
    Fault("tensor-unknown", "awq", rename_tensors("model.norm.weight", "model.norm.extra"),
          frozenset({"tensors-missing"})),
    Fault("not-ignored", "awq", _of(modules_to_not_convert=["block_sparse_moe.gate", ".mlp.gate", "lm_head"])),
    Fault("not-ignored", "kept", _of(ignore=["lm_head", "re:.*self_attn.*", r"re:.*layers\.3\.block_sparse_moe\..*"])),
    Fault("not-ignored", "kept-awq", quantization(
        lambda values: values["modules_to_not_convert"].remove("layers.3.mlp."))),
    Fault("quantized-but-ignored", "compressed", _target(EXPERTS_BY_CHECKPOINT_NAME)),
    Fault("quantized-but-ignored", "awq", _of(modules_to_not_convert=["self_attn", "mlp", "lm_head"])),
    Fault("quantized-but-ignored", "gptq", _of(dynamic={"-:.*mlp.*": {}, "-:.*self_attn.*": {}})),
    Fault("rules-refused", "awq", _of(modules_to_not_convert=["q_proj", "o_proj", "gate", "lm_head"])),
    Fault("rules-missing", "awq", _of(modules_to_not_convert=[])),
    Fault("module-mixed", "awq", tensors(
        lambda name, value: {"model.layers.0.block_sparse_moe.experts.2.w1.weight": torch.zeros(256, 256).bfloat16()}
        if name.endswith("layers.0.block_sparse_moe.experts.2.w1.qweight")
        else {} if "layers.0.block_sparse_moe.experts.2.w1." in name else None
    )),
    Fault("quantization-config-missing", "compressed", config(quantization_config=...)),
    Fault("quantization-contradicts", "awq", _of(
        quant_method="compressed-tensors", format="pack-quantized", ignore=["lm_head"], config_groups={"group_0": {
            "targets": [r"re:.*\.experts\.\d+\.w[123]$"],
            "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}}})),
    Fault("packing", "gptq", _of(group_size=64)),
    Fault("packing", "compressed", _weights(group_size=128)),
    Fault("packing", "gptq", _of(bits=8)),
    Fault("zero-points", "compressed", _weights(symmetric=False)),
    Fault("packing-incomplete", "awq", drop(MOE + "experts.3.w2.qzeros")),
    Fault("quantization-unsupported", "gptq", _of(sym=False)),
    Fault("quantization-unsupported", "gptq", _of(desc_act=True)),
    Fault("quantization-unsupported", "awq", _of(version="gemv")),
    Fault("compressed-unsupported", "compressed", _weights(actorder="group")),
    Fault("fp8-scales-missing", "fp8-attention", drop(ATTENTION + "q_proj.weight_scale")),
    Fault("rotary-dim-missing", "awq", config(
        rotary_dim=..., rope_parameters={"partial_rotary_factor": 0.5, "rope_theta": 10000})),
    Fault("config-half", "awq", config(dtype="float16")),
    Fault("config-eos", "gptq", config(bos_token_id=1, eos_token_id=2)),
    Fault("config-dimensions", "gptq", config(scoring_func="softmax")),
    Fault("config-missing", "awq", without("config.json"), frozenset({"quantization-config-missing"})),
    Fault("generation-config-missing", "compressed", without("generation_config.json")),
    Fault("generation-eos", "compressed", edit("generation_config.json", eos_token_id=2)),
    Fault("tokenizer-missing", "awq", without("tokenizer.json")),
    Fault("tokenizer-eos", "awq", edit("tokenizer_config.json", eos_token="</s>")),
    Fault("chat-template-missing", "gptq", without("chat_template.jinja")),
    Fault("chat-template-wrong", "gptq", text("chat_template.jinja", "{{ messages[0].content }}<tool_calls>")),
    Fault("licence-missing", "awq", without("LICENSE")),
    Fault("licence-other", "awq", text("LICENSE", "MIT License\n\nPermission is hereby granted, free of charge\n")),
    Fault("licence-mislabelled", "awq", text("README.md", CARD.replace("license: other", "license: modified-mit"))),
    Fault("base-model-missing", "awq", text("README.md", CARD.replace("base_model: MiniMaxAI/MiniMax-M2.7\n", ""))),
    Fault("base-model-relation", "awq", text("README.md", CARD.replace("base_model_relation: quantized\n", ""))),
    Fault("shard-missing", "awq", without("model-00002-of-00003.safetensors")),
    Fault("shard-not-indexed", "awq", unlisted_shard),
    Fault("shard-damaged", "gptq", truncate("model-00002-of-00003.safetensors")),
    Fault("shard-damaged", "compressed", overlapping),
    Fault("tensor-twice", "awq", tensor_twice),
    Fault("tensor-not-in-shard", "awq", _missing_in_shard, frozenset({"tensors-missing"})),
    Fault("tensor-not-indexed", "awq", _unlisted_tensor, frozenset({"tensor-not-in-shard"})),
    Fault("index-missing", "awq", without(INDEX)),
    Fault("json-damaged", "awq", text("generation_config.json", "{")),
    Fault("plain-rounding", "awq", lambda folder: None, rename="MiniMax-M2.7-AWQ"),
    Fault("leftover", "awq", text("model-00004.safetensors.partial", "x")),
    Fault("models-mixed", "awq", _gguf_beside),
)  # fmt: skip

GGUF_FAULTS = (
    Fault("down-experts-unsafe", "q4_k_m", gguf_types(**{DOWN: gguf.GGMLQuantizationType.Q4_K})),
    Fault("router-quantized", "q4_k_m", gguf_types(blk__0__ffn_gate_inp__weight=gguf.GGMLQuantizationType.Q8_0)),
    Fault("norm-quantized", "q4_k_m", gguf_types(blk__1__attn_norm__weight=gguf.GGMLQuantizationType.Q8_0)),
    Fault("bias-missing", "q4_k_m", gguf_types(blk__1__exp_probs_b__bias=...)),
    Fault("experts-missing", "q4_k_m", gguf_types(blk__2__ffn_up_exps__weight=...)),
    Fault("tensors-missing", "q4_k_m", gguf_types(output__weight=...)),
    Fault("tensor-unknown", "q4_k_m", _one_row, frozenset({"tensors-missing"})),
    Fault("shape", "q4_k_m", gguf_keys(**{"minimax-m2.expert_count": 32})),
    Fault("gguf-dimensions", "q4_k_m", gguf_keys(**{"minimax-m2.rope.freq_base": ...})),
    Fault("gating-function", "q4_k_m", gguf_keys(**{"minimax-m2.expert_gating_func": ...})),
    Fault("rope-dimensions", "q4_k_m", gguf_keys(**{"minimax-m2.rope.dimension_count": 64})),
    Fault("chat-template-missing", "q4_k_m", gguf_keys(tokenizer__chat_template=...)),
    Fault("chat-template-wrong", "q4_k_m", gguf_keys(tokenizer__chat_template="{{ messages }}")),
    Fault("gguf-eos", "q4_k_m", gguf_keys(tokenizer__ggml__eos_token_id=2)),
    Fault("gguf-eos", "q4_k_m", gguf_keys(tokenizer__ggml__eos_token_id=...)),
    Fault("tokenizer-pre", "q4_k_m", gguf_keys(tokenizer__ggml__pre="default")),
    Fault("tokenizer-missing", "q4_k_m", gguf_keys(tokenizer__ggml__tokens=...)),
    Fault("importance-thin", "q4_k_m", gguf_keys(quantize__imatrix__entries_count=3)),
    Fault("gguf-licence-mislabelled", "q4_k_m", gguf_keys(general__license="modified-mit")),
    Fault("gguf-damaged", "q4_k_m", lambda folder: truncate(first_gguf(folder).name)(folder)),
    Fault("part-missing", "split", _split_part(1)),
    Fault("split-count", "split", _swapped_parts),
    Fault("split-tensors", "split", gguf_keys(split__tensors__count=7)),
    Fault("splits-mixed", "split", lambda folder: shutil.copy(
        first_gguf(folder), folder / first_gguf(folder).name.replace("-of-00003", "-of-00001")), frozenset(
        {"split-count", "split-tensors", "tensors-missing", "experts-missing", "bias-missing"})),
)  # fmt: skip
FAULTS = (*FOLDER_FAULTS, *GGUF_FAULTS)
