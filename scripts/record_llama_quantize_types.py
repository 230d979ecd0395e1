#!/usr/bin/env python3
"""Records which tensor types llama-quantize picks for MiniMax-M2, for `tests/recipe/test_mixes.py` to compare with.

    scripts/setup_llama_cpp && scripts/record_llama_quantize_types.py

Writes `tests/recipe/llama_quantize_types.json`. The models are headers of GGUF files with narrow tensors (nothing but
names, ranks and hyperparameters enters the choice) followed by a hole; `llama-quantize --dry-run` reads no weights. Of
an importance matrix it only asks whether there is one, so one with a single entry stands for all.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from quantkit.formats.imatrix.write import ImatrixEntry, write_imatrix

ROOT = Path(__file__).resolve().parent.parent
RECORDING = ROOT / "tests" / "recipe" / "llama_quantize_types.json"

HEAD_SIZE = 256  # a multiple of every block size, whatever the head count
HIDDEN = EXPERT_WIDTH = VOCABULARY = 256
EXPERTS = 16

# One line of the dry run: the tensor's name, its type in the input, and the new type unless it stays.
_TENSOR_LINE = re.compile(r"\] (?P<name>\S+) +- \[.*\], type = +(?P<old>\w+), size = .*MiB( \((?P<new>\w+)\))?$")
_TYPE_LINE = re.compile(r"^ +(?P<number>\d+) +or +(?P<name>\w+) +: (?P<text>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """A model for llama-quantize to decide on. M2.7 has 62 layers and 48 heads on 8 key/value heads: 6 to 1."""

    layers: int
    heads: int
    kv_heads: int
    experts: int = EXPERTS


CASES = (
    *(Case(layers, heads=12, kv_heads=2) for layers in (1, 3, 4, 10, 62)),
    Case(10, heads=8, kv_heads=2),
    Case(10, heads=6, kv_heads=2),
    Case(10, heads=7, kv_heads=2),
    Case(10, heads=6, kv_heads=2, experts=2),
)


def tensor_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Every tensor of such a model: GGUF name to numpy shape, [experts, rows, row length]."""
    query, key_value = case.heads * HEAD_SIZE, case.kv_heads * HEAD_SIZE
    block: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (HIDDEN,),
        "attn_q_norm.weight": (query,),
        "attn_k_norm.weight": (key_value,),
        "attn_q.weight": (query, HIDDEN),
        "attn_k.weight": (key_value, HIDDEN),
        "attn_v.weight": (key_value, HIDDEN),
        "attn_output.weight": (HIDDEN, query),
        "ffn_norm.weight": (HIDDEN,),
        "ffn_gate_inp.weight": (case.experts, HIDDEN),
        "exp_probs_b.bias": (case.experts,),
        "ffn_gate_exps.weight": (case.experts, EXPERT_WIDTH, HIDDEN),
        "ffn_up_exps.weight": (case.experts, EXPERT_WIDTH, HIDDEN),
        "ffn_down_exps.weight": (case.experts, HIDDEN, EXPERT_WIDTH),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "output.weight": (VOCABULARY, HIDDEN),
    }
    for layer in range(case.layers):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def write_model(case: Case, path: Path) -> None:
    """A BF16 file as convert_hf_to_gguf lays it out (norms, router and bias F32), with a hole in place of the data."""
    writer = gguf.GGUFWriter(path, "minimax-m2")
    writer.add_block_count(case.layers)
    writer.add_context_length(1024)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(EXPERT_WIDTH)
    writer.add_expert_feed_forward_length(EXPERT_WIDTH)
    writer.add_head_count(case.heads)
    writer.add_head_count_kv(case.kv_heads)
    writer.add_key_length(HEAD_SIZE)
    writer.add_value_length(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(HEAD_SIZE // 2)
    writer.add_vocab_size(VOCABULARY)
    writer.add_expert_count(case.experts)
    writer.add_expert_used_count(2)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    data_size = 0
    for name, shape in tensor_shapes(case).items():
        stays_f32 = len(shape) == 1 or "ffn_gate_inp" in name
        kind = gguf.GGMLQuantizationType.F32 if stays_f32 else gguf.GGMLQuantizationType.BF16
        n_values = 1
        for size in shape:
            n_values *= size
        n_bytes = n_values * gguf.GGML_QUANT_SIZES[kind][1]
        writer.add_tensor_info(name, shape, "float32", n_bytes, raw_dtype=kind)
        data_size += -(-n_bytes // gguf.GGUF_DEFAULT_ALIGNMENT) * gguf.GGUF_DEFAULT_ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header_size = path.stat().st_size
    os.truncate(path, -(-header_size // gguf.GGUF_DEFAULT_ALIGNMENT) * gguf.GGUF_DEFAULT_ALIGNMENT + data_size)


def write_small_imatrix(path: Path) -> None:
    """An importance matrix of one entry."""
    entry = ImatrixEntry("blk.0.attn_q.weight", HIDDEN, matrices=1)
    values = np.ones((1, HIDDEN), np.float32), np.ones(1, np.float32)
    write_imatrix(path, [entry], lambda name: values, datasets=["none"], chunk_count=1, chunk_size=1)


def dry_run(quantize: Path, model: Path, mix: str, options: Sequence[str] = ()) -> tuple[dict[str, str], str]:
    """What llama-quantize would write: GGUF name to ggml type name, and everything it printed."""
    command = [str(quantize), "--dry-run", *options, str(model), mix]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = done.stdout + done.stderr
    lines = (_TENSOR_LINE.search(line) for line in printed.splitlines())
    return {line["name"]: (line["new"] or line["old"]).upper() for line in lines if line}, printed


def known_mixes(quantize: Path) -> tuple[dict[str, int], dict[str, str]]:
    """The output types in llama-quantize's help with their numbers for `general.file_type`; the aliases among them."""
    usage = subprocess.run([str(quantize), "--help"], capture_output=True, text=True, check=False).stdout
    numbers, aliases = {}, {}
    for line in _TYPE_LINE.finditer(usage):
        numbers[line["name"]] = int(line["number"])
        if line["text"].startswith("alias for "):
            aliases[line["name"]] = line["text"].removeprefix("alias for ").strip()
    return numbers, aliases


def compact(types: Mapping[str, str]) -> dict[str, str]:
    """Run-length coded types of a role's layers, such as `Q6_K*2 Q4_K Q6_K`, to the roles that have them."""
    by_role: dict[str, dict[int, str]] = {}
    for name, kind in types.items():
        _, layer, role = name.split(".", 2) if name.startswith("blk.") else ("", "0", name)
        by_role.setdefault(role, {})[int(layer)] = kind
    coded: dict[str, str] = {}
    for role, layers in sorted(by_role.items()):
        runs = [(kind, len(list(run))) for kind, run in itertools.groupby(layers[i] for i in range(len(layers)))]
        pattern = " ".join(kind if count == 1 else f"{kind}*{count}" for kind, count in runs)
        coded[pattern] = f"{coded[pattern]} {role}" if pattern in coded else role
    return coded


def expand(coded: Mapping[str, str], case: Case) -> dict[str, str]:
    """The inverse of `compact`: the type of every tensor of `case` that is not F32 in every mix."""
    types: dict[str, str] = {}
    for pattern, roles in coded.items():
        runs = [run.partition("*") for run in pattern.split()]
        kinds = [kind for kind, _, count in runs for _ in range(int(count or 1))]
        for role in roles.split():
            prefixed = not role.startswith(("token_embd", "output"))
            types |= {f"blk.{layer}.{role}" if prefixed else role: kind for layer, kind in enumerate(kinds)}
    if not types.keys() <= tensor_shapes(case).keys():
        raise ValueError(f"the recording has tensors that {case} has not")
    return types


def record(quantize: Path) -> dict[str, Any]:
    """Dry-runs every output type on every case, with an importance matrix and without.

    `mixes` are the decisions without; types that need an importance matrix are not among them. `with_imatrix` has
    those, and the others where the decisions differ.
    """
    file_types, aliases = known_mixes(quantize)
    mixes = sorted(file_types.keys() - aliases.keys())
    need_imatrix: set[str] = set()
    plain: dict[Case, dict[str, dict[str, str]]] = {}
    guided: dict[Case, dict[str, dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model, imatrix = Path(folder) / "model.gguf", Path(folder) / "imatrix.gguf"
        write_small_imatrix(imatrix)
        for case in CASES:
            write_model(case, model)
            plain[case], guided[case] = {}, {}
            for mix in mixes:
                plain[case][mix], printed = dry_run(quantize, model, mix)
                if "will require an imatrix" in printed:
                    need_imatrix.add(mix)
                guided[case][mix], _ = dry_run(quantize, model, mix, ["--imatrix", str(imatrix)])
    always_f32 = {
        case: {name for name in tensor_shapes(case) if all(types[name] == "F32" for types in by_mix.values())}
        for case, by_mix in plain.items()
    }

    def coded(case: Case, types: Mapping[str, str]) -> dict[str, str]:
        return compact({name: kind for name, kind in types.items() if name not in always_f32[case]})

    return {
        "file_types": dict(sorted(file_types.items())),
        "aliases": aliases,
        "need_imatrix": " ".join(sorted(need_imatrix)),
        "always_f32": " ".join(compact(dict.fromkeys(sorted(always_f32[CASES[0]]), "F32")).values()),
        "cases": [
            {
                "model": asdict(case),
                "mixes": {mix: coded(case, plain[case][mix]) for mix in mixes if mix not in need_imatrix},
                "with_imatrix": {
                    mix: coded(case, guided[case][mix])
                    for mix in mixes
                    if mix in need_imatrix or guided[case][mix] != plain[case][mix]
                },
            }
            for case in CASES
        ],
    }


def to_json(recording: Mapping[str, Any]) -> str:
    """JSON with one line per mix, so that a difference between two recordings can be read."""
    text = json.dumps(recording, indent=1)
    return re.sub(r"\{[^{}]*\}", lambda match: " ".join(match[0].split()), text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(os.environ.get("QUANTKIT_LLAMA_CPP", ROOT / ".cache" / "llama.cpp"))
    parser.add_argument("--quantize", type=Path, default=folder / "build" / "bin" / "llama-quantize")
    parser.add_argument("--out", type=Path, default=RECORDING)
    arguments = parser.parse_args()
    if not arguments.quantize.exists():
        sys.exit(f"{arguments.quantize} does not exist; run scripts/setup_llama_cpp first")
    recording = {"source": "llama-quantize of llama-cpp-python 0.3.36", **record(arguments.quantize)}
    arguments.out.write_text(to_json(recording), encoding="utf-8")
    print(f"wrote {arguments.out}: {len(recording['file_types'])} types, {len(recording['cases'])} models")


if __name__ == "__main__":
    main()
