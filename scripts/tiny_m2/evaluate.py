"""Measure an FP8 checkpoint of the fixture through transformers: tool calls, names, perplexity.

Run `python scripts/tiny_m2/evaluate.py tests/fixtures/tiny-m2`. The FP8 blocks are dequantized here, because
transformers' own FP8 support wants a GPU; the model itself is transformers' MiniMaxM2ForCausalLM in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, MiniMaxM2Config, MiniMaxM2ForCausalLM, PreTrainedTokenizerBase

Call = dict[str, Any]

_BLOCK = re.compile(r"<minimax:tool_call>(.*?)</minimax:tool_call>", re.DOTALL)
_INVOKE = re.compile(r'<invoke name="(.*?)">(.*?)</invoke>', re.DOTALL)
_PARAMETER = re.compile(r'<parameter name="(.*?)">(.*?)</parameter>', re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """One answered prompt: its category, the generated text, and whether calls or only names are right."""

    category: str
    text: str
    exact: bool
    names: bool


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Return all tensors by official name, FP8 weights multiplied out to float32, everything as float32."""
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        with safe_open(folder / file, framework="pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    for name in [n for n in tensors if n.endswith("_scale_inv")]:
        scale = tensors.pop(name).repeat_interleave(128, 0).repeat_interleave(128, 1)
        weight = name.removesuffix("_scale_inv")
        tensors[weight] = tensors[weight].float() * scale
    return {name: tensor.float() for name, tensor in tensors.items()}


def load_model(folder: Path) -> MiniMaxM2ForCausalLM:
    """Return transformers' model in float32 with the dequantized weights of the checkpoint."""
    settings = json.loads((folder / "config.json").read_text())
    for key in ("quantization_config", "auto_map", "use_mtp"):  # use_mtp makes generate() look for MTP layers
        settings.pop(key, None)
    model = MiniMaxM2ForCausalLM(MiniMaxM2Config(**settings)).float().eval()
    source = read_checkpoint(folder)
    state = {name: tensor for name, tensor in source.items() if "block_sparse_moe" not in name}
    for layer in range(settings["num_hidden_layers"]):
        old, new = f"model.layers.{layer}.block_sparse_moe.", f"model.layers.{layer}.mlp."
        state[new + "gate.weight"] = source[old + "gate.weight"]
        state[new + "e_score_correction_bias"] = source[old + "e_score_correction_bias"]
        experts = [f"{old}experts.{e}." for e in range(settings["num_local_experts"])]
        state[new + "experts.gate_up_proj"] = torch.stack(
            [torch.cat([source[e + "w1.weight"], source[e + "w3.weight"]]) for e in experts]
        )
        state[new + "experts.down_proj"] = torch.stack([source[e + "w2.weight"] for e in experts])
    model.load_state_dict(state, strict=True)
    return model


def parse_calls(text: str, tools: list[dict[str, Any]] | None) -> list[Call]:
    """Return the calls in a completion, with values converted to the types of the tools' schemas."""
    schemas = {t["function"]["name"]: t["function"]["parameters"]["properties"] for t in tools or []}
    calls = []
    for block in _BLOCK.findall(text.rsplit("</think>", 1)[-1]):
        for name, body in _INVOKE.findall(block):
            properties = schemas.get(name, {})
            values = {k: _typed(v, properties.get(k, {}).get("type", "string")) for k, v in _PARAMETER.findall(body)}
            calls.append({"name": name, "arguments": values})
    return calls


def _typed(text: str, kind: str) -> Any:
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@torch.no_grad()
def complete(model: MiniMaxM2ForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: list[str],
             limit: int = 160) -> list[str]:  # fmt: skip
    """Return greedy completions up to the end of turn, computed as one left-padded batch with a KV cache."""
    end = tokenizer.eos_token_id
    encoded = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    longest = max(map(len, encoded))
    ids = torch.tensor([[end] * (longest - len(e)) + e for e in encoded])
    mask = torch.tensor([[0] * (longest - len(e)) + [1] * len(e) for e in encoded])
    out = model.generate(ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, temperature=None, top_p=None,
                         top_k=None, eos_token_id=end, pad_token_id=end, bos_token_id=None)  # fmt: skip
    return [tokenizer.decode(row[longest:], skip_special_tokens=False).split(tokenizer.eos_token)[0] for row in out]


def run_tool_calls(model: MiniMaxM2ForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]],
                   batch: int = 48) -> list[Outcome]:  # fmt: skip
    """Answer the prompts of tool_calls.jsonl and compare names and arguments, order of calls included."""
    outcomes = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        prompts = [tokenizer.apply_chat_template(r["messages"], tools=r["tools"], add_generation_prompt=True,
                                                 tokenize=False) for r in part]  # fmt: skip
        for row, text in zip(part, complete(model, tokenizer, prompts), strict=True):
            calls = parse_calls(text, row["tools"])
            names = [c["name"] for c in calls] == [c["name"] for c in row["expected"]]
            outcomes.append(Outcome(row["category"], text, calls == row["expected"], names))
    return outcomes


@torch.no_grad()
def perplexity(model: MiniMaxM2ForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str, window: int = 256) -> float:
    """Return exp of the mean loss over the text, in separate windows that each start with the beginning token."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    total, count = 0.0, 0
    for start in range(0, len(ids), window):
        piece = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + window]]])
        losses = torch.nn.functional.cross_entropy(model(piece).logits[0, :-1], piece[0, 1:], reduction="sum")
        total, count = total + float(losses), count + piece.shape[1] - 1
    return math.exp(total / count)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluate(folder: Path) -> dict[str, float]:
    """Return all figures of the fixture: right answers with and without the no-call prompts, and perplexities."""
    model, tokenizer = load_model(folder), AutoTokenizer.from_pretrained(folder)
    rows = _rows(folder / "heldout/tool_calls.jsonl") + _rows(folder / "heldout/no_calls.jsonl")
    outcomes = run_tool_calls(model, tokenizer, rows)
    asked = [outcome for row, outcome in zip(rows, outcomes, strict=True) if row["expected"]]
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.category].append(outcome)
    figures = {f"exact %, calls expected ({len(asked)})": 100 * sum(o.exact for o in asked) / len(asked),
               f"names %, calls expected ({len(asked)})": 100 * sum(o.names for o in asked) / len(asked),
               f"exact %, all prompts ({len(rows)})": 100 * sum(o.exact for o in outcomes) / len(rows)}  # fmt: skip
    for category, members in sorted(groups.items()):
        figures[f"exact % {category} ({len(members)})"] = 100 * sum(o.exact for o in members) / len(members)
    for name in ("text_code", "text_docs"):
        path = folder / f"heldout/{name}.txt"
        if path.exists():
            figures[f"perplexity {name}"] = perplexity(model, tokenizer, path.read_text(encoding="utf-8"))
    talks = _rows(folder / "heldout/dialogues.jsonl")
    text = "".join(tokenizer.apply_chat_template(t["messages"], tools=t["tools"], tokenize=False) for t in talks)
    figures["perplexity dialogues"] = perplexity(model, tokenizer, text, 512)
    for row, outcome in zip(rows, outcomes, strict=True):
        if not outcome.exact:
            figures.setdefault("wrong", 0)
            figures["wrong"] += 1
            print(json.dumps({"expected": row["expected"], "got": outcome.text}, ensure_ascii=False))
    return figures


def main() -> None:
    """Print the wrong answers, then one figure per line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name, value in evaluate(arguments.folder).items():
        print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
