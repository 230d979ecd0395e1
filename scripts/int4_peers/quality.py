"""KL divergence of the FP8 fixture to quantized checkpoints of it, on text that nothing was calibrated with."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, MiniMaxM2ForCausalLM

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from transformers_reference import logprobs, model_from_checkpoint  # noqa: E402

from int4_peers.outputs import read_weights, round_to_nearest  # noqa: E402

FIXTURE = ROOT / "tests" / "fixtures" / "tiny-m2"
PIECE = 256  # tokens of the held-out texts that attend to each other
DIALOGUES, LONGEST = 24, 512


@dataclass(frozen=True)
class Divergence:
    """KL divergence [positions] of the FP8 model to another, and where each scored document ends.

    The first `text` positions are of code and prose, the others of dialogues.
    """

    positions: NDArray[np.float64]
    ends: NDArray[np.int64]
    text: int

    @property
    def mean(self) -> float:
        return float(self.positions.mean())

    @property
    def median(self) -> float:
        return float(np.median(self.positions))

    @property
    def standard_error(self) -> float:
        """Of the mean, from the documents' sums: positions of a document are not independent."""
        starts = np.concatenate([[0], self.ends[:-1]])
        sums, lengths = np.add.reduceat(self.positions, starts), np.diff(self.ends, prepend=0)
        return float(np.sqrt(((sums - self.mean * lengths) ** 2).sum()) / lengths.sum())

    def as_json(self) -> dict[str, float]:
        return {
            "mean": self.mean,
            "standard_error": self.standard_error,
            "median": self.median,
            "text": float(self.positions[: self.text].mean()),
            "dialogues": float(self.positions[self.text :].mean()),
        }


class Ruler:
    """The FP8 model in float32, its log-probabilities of the held-out documents, and what others lose against it."""

    def __init__(self) -> None:
        self.reference = model_from_checkpoint(FIXTURE)
        texts, dialogues = held_out_documents()
        self.documents = texts + dialogues
        self.positions = sum(map(len, self.documents))
        self._text = sum(map(len, texts))
        self.expected = [logprobs(self.reference, ids) for ids in self.documents]

    def divergence(self, model: MiniMaxM2ForCausalLM) -> Divergence:
        found = []
        for ids, before in zip(self.documents, self.expected, strict=True):
            after = logprobs(model, ids)
            found.append((before.exp() * (before - after)).sum(-1).numpy())
        return Divergence(np.concatenate(found), np.cumsum([len(part) for part in found]), self._text)

    def of_checkpoint(self, folder: Path) -> Divergence:
        """Of the quantized checkpoint in `folder`, with all of its tensors, norms and router included."""
        return self.divergence(self._with(_merged(read_weights(folder))))

    def of_rounding(self, group_size: int, symmetric: bool) -> Divergence:
        """Of the experts rounded to nearest with the minimum and maximum of each group."""
        state = {
            name: torch.stack([round_to_nearest(expert, group_size, symmetric) for expert in weight])
            for name, weight in self.reference.state_dict().items()
            if ".experts." in name
        }
        return self.divergence(self._with(self.reference.state_dict() | state))

    def _with(self, state: dict[str, Tensor]) -> MiniMaxM2ForCausalLM:
        model = copy.deepcopy(self.reference)
        model.load_state_dict(state, strict=True)
        return model


def held_out_documents() -> tuple[list[list[int]], list[list[int]]]:
    """Held-out code and prose in pieces; and dialogues with their tools."""
    tokenizer = AutoTokenizer.from_pretrained(FIXTURE)
    texts, dialogues = [], []
    for name in ("text_code.txt", "text_docs.txt"):
        ids = tokenizer((FIXTURE / "heldout" / name).read_text())["input_ids"]
        texts += [ids[first : first + PIECE] for first in range(0, len(ids) - PIECE + 1, PIECE)]
    for line in (FIXTURE / "heldout" / "dialogues.jsonl").read_text().splitlines()[:DIALOGUES]:
        row = json.loads(line)
        text = tokenizer.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False)
        dialogues.append(tokenizer(text)["input_ids"][:LONGEST])
    return texts, dialogues


def write_float_checkpoint(folder: Path) -> None:
    """Write the fixture with its FP8 weights dequantized to float32, which is exact: what others can calibrate."""
    folder.mkdir()
    for path in FIXTURE.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name != "model.safetensors.index.json":
            shutil.copyfile(path, folder / path.name)
    settings = json.loads((FIXTURE / "config.json").read_text())
    for key in ("quantization_config", "auto_map"):
        del settings[key]
    (folder / "config.json").write_text(json.dumps(settings | {"dtype": "float32"}))
    weights = {name: tensor.contiguous() for name, tensor in read_weights(FIXTURE).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _merged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under a checkpoint's names as transformers' model holds them, the experts of a layer in one tensor."""
    state, experts = {}, {}
    for key, tensor in tensors.items():
        name = key.replace(".block_sparse_moe.", ".mlp.")
        if ".experts." in name:
            layer, rest = name.split(".experts.")
            expert, matrix, _ = rest.split(".")
            experts.setdefault((layer, matrix), {})[int(expert)] = tensor
        else:
            state[name] = tensor
    stacked = {key: torch.stack([one[expert] for expert in sorted(one)]) for key, one in experts.items()}
    for layer in {layer for layer, _ in stacked}:
        state[f"{layer}.experts.gate_up_proj"] = torch.cat([stacked[layer, "w1"], stacked[layer, "w3"]], dim=1)
        state[f"{layer}.experts.down_proj"] = stacked[layer, "w2"]
    return state
