"""KL divergence of the FP8 fixture to quantized checkpoints of it, on text that nothing was calibrated with."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import MiniMaxM2ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from held_out_divergence import FIXTURE, Divergence, Ruler, held_out_documents, joined

from int4_peers.outputs import read_weights, round_to_nearest

__all__ = ["FIXTURE", "CheckpointRuler", "joined", "write_float_checkpoint"]


class CheckpointRuler(Ruler):
    """What quantized checkpoints lose on the held-out documents of the fixture."""

    def __init__(self) -> None:
        super().__init__(held_out_documents())

    def of_checkpoint(self, folder: Path) -> dict[str, Divergence]:
        """Of the quantized checkpoint in `folder`, with all of its tensors, norms and router included."""
        return self.divergence(self._with(_merged(read_weights(folder))))

    def of_rounding(self, group_size: int, symmetric: bool) -> dict[str, Divergence]:
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
