"""Write the trained model as an FP8 checkpoint in the official layout, with the official layout's traps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from tiny_m2.fp8 import quantize
from tiny_m2.model import Shape
from tiny_m2.template import TEMPLATE_PATH
from tiny_m2.tokenizer import ADDED_TOKENS, BEGIN, END, ROLE, UNKNOWN

SHARD_BYTES = 2_600_000
WRONG_EXTRA_SHARDS = 2
"""The official file names promise 130 shards where 125 exist; ours promise two too many."""


def official_tensors(state: dict[str, Tensor], shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) in the order of the official checkpoint from a `TinyM2` state dict."""
    yield "model.embed_tokens.weight", state["embed"].to(torch.bfloat16)
    for layer in range(shape.num_hidden_layers):
        source, target = f"layers.{layer}.", f"model.layers.{layer}."
        moe = target + "block_sparse_moe."
        yield moe + "e_score_correction_bias", state[source + "correction_bias"].float()
        w1, w3 = state[source + "w13"].split(shape.intermediate_size, dim=1)
        for expert in range(shape.num_local_experts):
            for name, stack in (("w1", w1), ("w2", state[source + "w2"]), ("w3", w3)):
                yield from _fp8(f"{moe}experts.{expert}.{name}", stack[expert])
        yield moe + "gate.weight", state[source + "gate"].float()
        yield target + "input_layernorm.weight", state[source + "input_norm"].to(torch.bfloat16)
        yield target + "post_attention_layernorm.weight", state[source + "post_norm"].to(torch.bfloat16)
        for name in ("q_norm", "k_norm"):
            yield f"{target}self_attn.{name}.weight", state[source + name].to(torch.bfloat16)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield from _fp8(f"{target}self_attn.{name}", state[source + name])
    yield "model.norm.weight", state["norm"].to(torch.bfloat16)
    yield "lm_head.weight", state["lm_head"].to(torch.bfloat16)


def _fp8(module: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    values, scale = quantize(weight)
    yield module + ".weight", values
    yield module + ".weight_scale_inv", scale


def split_shards(tensors: list[tuple[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Cut the tensor list into shards, after an FP8 weight where possible, so that its scale opens the next shard."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors:
        previous = next(reversed(shards[-1]), "")
        full = size >= SHARD_BYTES and (name == previous + "_scale_inv" or size >= 1.2 * SHARD_BYTES)
        if full and not name.startswith("lm_head"):
            shards.append({})
            size = 0
        shards[-1][name] = tensor.contiguous()
        size += tensor.nbytes
    return shards


def write_weights(folder: Path, state: dict[str, Tensor], shape: Shape) -> None:
    """Write shards with 0-based names and a wrong total, and an index whose total_size is the BF16 size."""
    shards = split_shards(list(official_tensors(state, shape)))
    total = len(shards) + WRONG_EXTRA_SHARDS
    weight_map = {}
    for number, shard in enumerate(shards):
        name = f"model-{number:05d}-of-{total:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    elements = sum(t.numel() for shard in shards for n, t in shard.items() if not n.endswith("_scale_inv"))
    index = {"metadata": {"total_size": 2 * elements}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def config(shape: Shape) -> dict[str, Any]:
    """Return config.json with the official key set: no token ids, rotary_dim, MTP fields that describe nothing."""
    return {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "attn_type_list": [1] * shape.num_hidden_layers,
        "auto_map": {"AutoConfig": "configuration_minimax_m2.MiniMaxM2Config",
                     "AutoModelForCausalLM": "modeling_minimax_m2.MiniMaxM2ForCausalLM"},
        "dtype": "bfloat16",
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "model_type": "minimax_m2",
        "mtp_transformer_layers": 1,
        "num_attention_heads": shape.num_attention_heads,
        "num_experts_per_tok": shape.num_experts_per_tok,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_key_value_heads,
        "num_local_experts": shape.num_local_experts,
        "num_mtp_modules": 3,
        "qk_norm_type": "per_layer",
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "float8_e4m3fn",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
        },
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": int(shape.rope_theta),
        "rotary_dim": shape.rotary_dim,
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 0,
        "tie_word_embeddings": False,
        "transformers_version": "4.46.1",
        "use_cache": True,
        "use_mtp": True,
        "use_qk_norm": True,
        "use_routing_bias": True,
        "vocab_size": shape.vocab_size,
    }  # fmt: skip


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write tokenizer.json, its slow-format twins vocab.json and merges.txt, and both configurations."""
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
    decoder = {str(tokenizer.token_to_id(text)): {"content": text, "lstrip": False, "normalized": False,
                                                  "rstrip": False, "single_word": False, "special": special}
               for text, special in ADDED_TOKENS}  # fmt: skip
    _write_json(folder / "tokenizer_config.json", {
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": [text for text, special in ADDED_TOKENS if special],
        "bos_token": BEGIN,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": 40960000,
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": UNKNOWN,
    })  # fmt: skip
    _write_json(folder / "generation_config.json", {
        "bos_token_id": tokenizer.token_to_id(ROLE),
        "do_sample": True,
        "eos_token_id": tokenizer.token_to_id(END),
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": 40,
        "transformers_version": "4.46.1",
    })  # fmt: skip


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(folder: Path, state: dict[str, Tensor], shape: Shape, tokenizer: Tokenizer) -> None:
    """Replace the model files of the fixture folder; other files there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    write_weights(fresh, state, shape)
    write_tokenizer(fresh, tokenizer)
    _write_json(fresh / "config.json", config(shape))
    shutil.copyfile(TEMPLATE_PATH, fresh / "chat_template.jinja")
    for stale in folder.glob("model-*.safetensors"):
        stale.unlink()
    for path in sorted(fresh.iterdir()):
        path.chmod(0o644)
        path.replace(folder / path.name)
    fresh.rmdir()
