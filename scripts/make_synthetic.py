#!/usr/bin/env python3
"""Write a random MiniMax-M2 checkpoint of any size in the official layout, traps included, for benchmarks and tests.

    scripts/make_synthetic.py OUT --layers 1 --real-dims     one real M2.7 layer: 3.6 G expert weights, 3.7 GB
    scripts/make_synthetic.py OUT --layers 62                62 small layers, 809 GGUF tensors

FP8 codes are taken from one Gaussian pool at random places, so that even the real size is written in about a minute;
block scales are log-normal. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

REAL = {"hidden": 3072, "width": 1536, "experts": 256, "used": 8, "heads": 48, "kv_heads": 8, "head_dim": 128}
SMALL = {"hidden": 256, "width": 256, "experts": 16, "used": 4, "heads": 6, "kv_heads": 1, "head_dim": 128}
BLOCK = 128
POOL_WEIGHTS = 24_000_000

# The official marks, placed behind the byte-level vocabulary: text, id offset, special flag.
MARKS = [
    ("]!p~[", True),
    ("]~b]", True),
    ("[e~[", True),
    ("]!d~[", True),
    ("]~!b[", True),
    ("<think>", False),
    ("</think>", False),
    ("<minimax:tool_call>", False),
    ("</minimax:tool_call>", False),
]


@dataclass(frozen=True)
class Size:
    """Dimensions of the checkpoint; `width` is that of one expert."""

    layers: int
    hidden: int
    width: int
    experts: int
    used: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


class Maker:
    """Random tensors of one seed."""

    def __init__(self, seed: int, bf16: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.bf16 = bf16
        values = torch.from_numpy(self.rng.standard_normal(POOL_WEIGHTS, dtype=np.float32)) * 100
        self.pool = values.clamp(-448, 448).to(torch.float8_e4m3fn)

    def matrix(self, name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        """A linear weight [rows, columns]: FP8 with block scales, or BF16."""
        start = int(self.rng.integers(0, POOL_WEIGHTS - rows * columns + 1))
        raw = self.pool.view(torch.uint8)[start : start + rows * columns]
        weight = raw.clone().view(torch.float8_e4m3fn).reshape(rows, columns)
        blocks = (math.ceil(rows / BLOCK), math.ceil(columns / BLOCK))
        scale = torch.from_numpy(np.exp(self.rng.normal(math.log(2e-4), 0.3, blocks)).astype(np.float32))
        if not self.bf16:
            return {name: weight, name + "_scale_inv": scale}
        wide = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
        return {name: (weight.float() * wide).to(torch.bfloat16)}

    def dense(self, shape: tuple[int, ...], mean: float, deviation: float, dtype: torch.dtype) -> torch.Tensor:
        values = self.rng.standard_normal(shape, dtype=np.float32) * deviation + mean
        return torch.from_numpy(values).to(dtype)


def layer_tensors(maker: Maker, size: Size, layer: int) -> dict[str, torch.Tensor]:
    """All tensors of one decoder layer, in a random order: experts, and weights and scales, fall into any shard."""
    prefix = f"model.layers.{layer}."
    attention, moe = prefix + "self_attn.", prefix + "block_sparse_moe."
    q, kv = size.heads * size.head_dim, size.kv_heads * size.head_dim
    tensors: dict[str, torch.Tensor] = {}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{prefix}{norm}.weight"] = maker.dense((size.hidden,), 1, 0.1, torch.bfloat16)
    tensors[attention + "q_norm.weight"] = maker.dense((q,), 1, 0.1, torch.bfloat16)
    tensors[attention + "k_norm.weight"] = maker.dense((kv,), 1, 0.1, torch.bfloat16)
    for name, rows, columns in (
        ("q_proj", q, size.hidden),
        ("k_proj", kv, size.hidden),
        ("v_proj", kv, size.hidden),
        ("o_proj", size.hidden, q),
    ):
        tensors |= maker.matrix(f"{attention}{name}.weight", rows, columns)
    tensors[moe + "gate.weight"] = maker.dense((size.experts, size.hidden), 0, 0.05, torch.float32)
    tensors[moe + "e_score_correction_bias"] = maker.dense((size.experts,), 0.1, 0.05, torch.float32)
    for expert in range(size.experts):
        for name, rows, columns in (
            ("w1", size.width, size.hidden),
            ("w2", size.hidden, size.width),
            ("w3", size.width, size.hidden),
        ):
            tensors |= maker.matrix(f"{moe}experts.{expert}.{name}.weight", rows, columns)
    names = list(tensors)
    maker.rng.shuffle(names)
    return {name: tensors[name] for name in names}


class ShardWriter:
    """Collects tensors and writes a shard whenever it is full: 0-based names with a wrong "-of-" count."""

    def __init__(self, folder: Path, shard_bytes: int, wrong_count: int) -> None:
        self.folder, self.shard_bytes, self.wrong_count = folder, shard_bytes, wrong_count
        self.waiting: dict[str, torch.Tensor] = {}
        self.waiting_bytes = 0
        self.shards = 0
        self.weight_map: dict[str, str] = {}
        self.weights = 0

    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if self.waiting and self.waiting_bytes + tensor.nbytes > self.shard_bytes:
                self.flush()
            self.waiting[name] = tensor
            self.waiting_bytes += tensor.nbytes
            self.weights += tensor.numel()

    def flush(self) -> None:
        if not self.waiting:
            return
        name = f"model-{self.shards:05d}-of-{self.wrong_count:05d}.safetensors"
        save_file(self.waiting, self.folder / name, metadata={"format": "pt"})
        self.weight_map |= dict.fromkeys(self.waiting, name)
        self.waiting, self.waiting_bytes = {}, 0
        self.shards += 1

    def finish(self) -> None:
        """Write the last shard and the index, whose total_size is the BF16 size as in the official one."""
        self.flush()
        index = {"metadata": {"total_size": self.weights * 2}, "weight_map": dict(sorted(self.weight_map.items()))}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_config(folder: Path, size: Size, bf16: bool) -> None:
    """config.json with the official keys, multi-token-prediction fields without tensors included."""
    config = {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "attn_type_list": [1] * size.layers,
        "dtype": "bfloat16",
        "head_dim": size.head_dim,
        "hidden_act": "silu",
        "hidden_size": size.hidden,
        "intermediate_size": size.width,
        "max_position_embeddings": 204800,
        "model_type": "minimax_m2",
        "mtp_transformer_layers": 1,
        "num_attention_heads": size.heads,
        "num_experts_per_tok": size.used,
        "num_hidden_layers": size.layers,
        "num_key_value_heads": size.kv_heads,
        "num_local_experts": size.experts,
        "num_mtp_modules": 3,
        "qk_norm_type": "per_layer",
        "rms_norm_eps": 1e-06,
        "rope_theta": 5000000,
        "rotary_dim": size.head_dim // 2,
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 0,
        "tie_word_embeddings": False,
        "transformers_version": "4.46.1",
        "use_cache": True,
        "use_mtp": True,
        "use_qk_norm": True,
        "use_routing_bias": True,
        "vocab_size": size.vocab,
    }
    if not bf16:
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "float8_e4m3fn",
            "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
        }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A small byte-level BPE with the official marks, and the other text files of a checkpoint."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["the expert of a layer is the unit of work, and a shard holds the experts of some layers"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = min(320, vocab - len(MARKS))
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    raw = json.loads(tokenizer.to_str())
    first = max(raw["model"]["vocab"].values()) + 1
    raw["added_tokens"] = [
        {
            "id": first + index,
            "content": mark,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special,
        }
        for index, (mark, special) in enumerate(MARKS)
    ]
    ids = {token["content"]: token["id"] for token in raw["added_tokens"]}
    (folder / "tokenizer.json").write_text(json.dumps(raw, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "]~!b[",
        "eos_token": "[e~[",
        "unk_token": "]!d~[",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 40960000,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    generation = {"bos_token_id": ids["]~b]"], "eos_token_id": ids["[e~["], "do_sample": True}
    generation |= {"temperature": 1.0, "top_p": 0.95, "top_k": 40}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    template = "{% for m in messages %}]~b]{{ m.role }}\n{{ m.content }}[e~[\n{% endfor %}]~b]ai\n<think>\n"
    (folder / "chat_template.jinja").write_text(template)


def make(folder: Path, size: Size, *, seed: int = 0, bf16: bool = False, shard_bytes: int = 1_700_000_000) -> None:
    """Write the whole checkpoint into `folder`, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    maker = Maker(seed, bf16)
    per_layer = 3 * size.experts * size.width * size.hidden * (2 if bf16 else 1)
    writer = ShardWriter(folder, shard_bytes, size.layers * per_layer // shard_bytes + 7)
    writer.add({"model.embed_tokens.weight": maker.dense((size.vocab, size.hidden), 0, 0.02, torch.bfloat16)})
    for layer in range(size.layers):
        writer.add(layer_tensors(maker, size, layer))
    writer.add(
        {
            "lm_head.weight": maker.dense((size.vocab, size.hidden), 0, 0.02, torch.bfloat16),
            "model.norm.weight": maker.dense((size.hidden,), 1, 0.1, torch.bfloat16),
        }
    )
    writer.finish()
    write_config(folder, size, bf16)
    write_tokenizer(folder, size.vocab)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--real-dims", action="store_true", help="M2.7's widths, experts and heads")
    for key in SMALL:
        parser.add_argument(f"--{key.replace('_', '-')}", type=int)
    parser.add_argument("--vocab", type=int, default=512, help="rows of the embedding (M2.7 has 200064)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="BF16 weights instead of FP8 blocks")
    parser.add_argument("--shard-size", type=int, default=1_700_000_000, help="bytes")
    arguments = parser.parse_args()
    chosen = dict(REAL if arguments.real_dims else SMALL)
    chosen |= {key: getattr(arguments, key) for key in SMALL if getattr(arguments, key) is not None}
    size = Size(layers=arguments.layers, vocab=arguments.vocab, **chosen)
    make(arguments.out, size, seed=arguments.seed, bf16=arguments.bf16, shard_bytes=arguments.shard_size)
    total = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{arguments.out}: {size.layers} layers, {total / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
