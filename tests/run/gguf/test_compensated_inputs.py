"""Errors are fed back under what really enters a matrix: transformers' own activations say that the output gains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from transformers import AutoTokenizer
from transformers_reference import model_from_checkpoint

from quantkit.calibration.tokens import TokenSet
from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.calibration import Calibration
from quantkit.run.gguf.compensate import write_compensated
from quantkit.run.gguf.convert import write_gguf
from quantkit.run.gguf.plan import Target
from quantkit.run.imatrix import make_imatrix

DOCUMENTS, LENGTH = 24, 128
# Layer 0 has nothing before it that differs from the original; behind the last layer nearly everything does.
EXPERT_MATRICES = {"ffn_gate_exps": 0, "ffn_up_exps": 1}
Errors = dict[str, float]


@pytest.fixture(scope="module")
def tokens(tiny_m2: Path) -> TokenSet:
    text = (tiny_m2 / "heldout" / "text_code.txt").read_text()
    ids = np.array(AutoTokenizer.from_pretrained(tiny_m2)(text)["input_ids"][: DOCUMENTS * LENGTH], np.int32)
    return TokenSet(ids, np.arange(0, len(ids) + 1, LENGTH), LENGTH, {"corpus": "held-out code"})


@pytest.fixture(scope="module")
def files(tiny_m2: Path, tokens: TokenSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same types from the same tokens: compensated, and with an importance matrix."""
    folder = tmp_path_factory.mktemp("files")
    recipe = recipe_from_options("q3_k_s")
    write_compensated(tiny_m2, [Target(folder / "c.gguf", recipe)], Calibration(tokens, 0), quiet=True)
    make_imatrix(tiny_m2, folder / "imatrix.gguf", tokens, min_tokens=0, quiet=True)
    write_gguf(tiny_m2, folder / "i.gguf", recipe, imatrix=folder / "imatrix.gguf")
    return folder / "c.gguf", folder / "i.gguf"


@pytest.fixture(scope="module")
def errors(tiny_m2: Path, tokens: TokenSet, files: tuple[Path, Path]) -> Callable[[str], tuple[float, float]]:
    """Mean squared output error of a tensor of the first layer, in both files, under transformers' activations."""
    model = model_from_checkpoint(tiny_m2)
    layer = model.model.layers[0]
    seen: dict[str, list[torch.Tensor]] = {"attn": [], "attn_output": [], "ffn": []}
    hooks = {"attn": layer.self_attn.q_proj, "attn_output": layer.self_attn.o_proj, "ffn": layer.mlp}
    for name, module in hooks.items():
        module.register_forward_pre_hook(lambda _, rows, name=name: seen[name].append(rows[0].flatten(0, -2)))
    with torch.no_grad():
        model(torch.from_numpy(tokens.ids.astype(np.int64)).view(DOCUMENTS, LENGTH))
    inputs = {name: torch.cat(parts) for name, parts in seen.items()}
    attention = {role: getattr(layer.self_attn, f"{role[-1]}_proj").weight for role in ("attn_q", "attn_k", "attn_v")}
    exact = attention | {"attn_output": layer.self_attn.o_proj.weight}
    gate_up = layer.mlp.experts.gate_up_proj
    exact |= {role: gate_up.chunk(2, dim=1)[half] for role, half in EXPERT_MATRICES.items()}
    stored = [{tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in files]

    def measure(role: str) -> tuple[float, float]:
        rows = inputs["ffn" if role in EXPERT_MATRICES else "attn_output" if role == "attn_output" else "attn"]
        found = []
        for tensors in stored:
            tensor = tensors[f"blk.0.{role}.weight"]
            difference = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)) - exact[role].detach()
            found.append(float((rows @ difference.mT).square().mean()))
        return found[0], found[1]

    return measure


@pytest.mark.parametrize("role", ["attn_q", "attn_k", "attn_v", "attn_output", *EXPERT_MATRICES])
def test_output_error_on_activations_of_transformers(errors: Callable[[str], tuple[float, float]], role: str) -> None:
    """All tokens stand for those of an expert: what they have in common is most of it."""
    compensated, weighted = errors(role)
    print(f"{role}: {compensated / weighted:.3f}")
    assert compensated < 0.85 * weighted
