"""What must hold for every INT4 output: what propagated is what is written, AWQ folds exactly, formats agree.

Names, dtypes, shapes and the bytes of what is not quantized are in test_int4_folder. Here transformers runs the
outputs, with integers that independent readers take out of their words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized import unpack_from_int32
from harness import MakeCheckpoint
from int4_folders import config, original, tensors
from int4_runs import Case, token_set
from integer_reference import dequantized, model_from_integers
from safetensors.torch import save_file
from torch import nn
from transformers import MiniMaxM2ForCausalLM

from quantkit.calibration.layer_store import LayerStore
from quantkit.forward.tokens import TokenStates
from quantkit.run.int4 import experts, folder

SIZE = {"layers": 3, "hidden": 256, "width": 128, "experts": 8, "used": 2}
DOCUMENTS, LENGTH = 6, 64
NORM, GATE = "post_attention_layernorm", "block_sparse_moe.gate"

RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gptq": ("bf16", "gptq", {}),
    "gptq int4 attention": ("fp8", "gptq", {"attention": "int4"}),
    "gptq fp8 attention": ("fp8", "gptq", {"attention": "fp8", "format_name": "compressed-tensors"}),
    "awq": ("bf16", "awq", {"min_tokens": 0}),
    "awq then gptq": ("bf16", "awq", {"then_gptq": True, "symmetric": True}),
}
AWQ_RUNS = [run for run in RUNS if run.startswith("awq")]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models as small as these only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Made:
    """An output, its source, and the states that its run ended with."""

    source: Path
    out: Path
    states: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def layers(self) -> range:
        return range(SIZE["layers"])


Make = Callable[[str], Made]


@pytest.fixture(scope="module")
def sources(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("sources")
    return {name: make_checkpoint(parent / name, bf16=name == "bf16", **SIZE) for name in ("bf16", "fp8")}


@pytest.fixture(scope="module")
def make(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The output of one of RUNS, made once for all tests."""
    made: dict[str, Made] = {}

    def run(name: str) -> Made:
        if name not in made:
            source, method, options = RUNS[name]
            made[name] = Made(sources[source], tmp_path_factory.mktemp("made") / "M")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(LayerStore, "save", _remembering(made[name]))
                Case(sources[source], made[name].out, method).run(
                    tokens=token_set(lengths=(LENGTH,) * DOCUMENTS), **options
                )
        return made[name]

    return run


def _remembering(made: Made) -> Callable[..., None]:
    save = LayerStore.save

    def saved(self: LayerStore, layer: int, arrays: Any, states: TokenStates) -> None:
        save(self, layer, arrays, states)
        made.states = states.residual.read(torch.arange(DOCUMENTS * LENGTH)).clone()

    return saved


@torch.no_grad()
def seen(model: MiniMaxM2ForCausalLM, module: nn.Module, *, before: bool = False) -> torch.Tensor:
    """What leaves, or enters, a module of the model when the calibration tokens pass, [T, K]."""
    found: list[torch.Tensor] = []
    if before:
        hook = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    else:
        hook = module.register_forward_hook(lambda _, inputs, output: found.append(output))
    ids = torch.from_numpy(token_set(lengths=(LENGTH,) * DOCUMENTS).ids).long()
    model(ids.view(DOCUMENTS, LENGTH), use_cache=False)
    hook.remove()
    return found[0].flatten(0, -2)


def far_rows(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> int:
    """Rows that differ by more than `tolerance` of their norm."""
    return int(((found - expected).norm(dim=1) > tolerance * expected.norm(dim=1)).sum())


def model_of(weights: dict[str, torch.Tensor], source: Path, work: Path) -> MiniMaxM2ForCausalLM:
    """transformers' model in float32 with `weights` under the names and with the sizes of the checkpoint `source`."""
    plain = work / "plain"
    plain.mkdir(parents=True)
    (plain / "config.json").write_text(
        json.dumps(config(source) | {"quantization_config": {"quant_method": "awq", "bits": 4}})
    )
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, plain / "model.safetensors")
    return model_from_integers(plain, work / "wide")


# What propagated


@pytest.mark.parametrize("run", RUNS)
def test_what_propagated_is_what_is_written(make: Make, run: str, tmp_path: Path) -> None:
    """The states behind the last layer are those of the dequantized output, run by transformers in float32."""
    made = make(run)
    model = model_from_integers(made.out, tmp_path / "made")
    expected = seen(model, model.model.layers[-1])
    assert far_rows(made.states, expected, 1e-5) == 0
    unquantized = model_of(original(made.source), made.source, tmp_path / "source")
    assert far_rows(seen(unquantized, unquantized.model.layers[-1]), expected, 1e-3) == len(expected)


# The fold of AWQ


@pytest.mark.parametrize("run", AWQ_RUNS)
def test_router_takes_up_what_the_norm_gives(make: Make, run: str) -> None:
    """gate' / gate is norm / norm' for every channel, to the rounding of one float32."""
    made = make(run)
    before, after = original(made.source), tensors(made.out)
    for layer in made.layers:
        norm, gate = (f"model.layers.{layer}.{name}.weight" for name in (NORM, GATE))
        factors = before[norm].double() / after[norm].double()
        ratios = after[gate].double() / before[gate].double()
        assert ((ratios / factors - 1).abs() <= 2**-23).all()
        assert (factors > 0).all()
        assert factors.max() > 1.05 * factors.min(), "something was scaled"
        assert after[gate].dtype is torch.float32


@pytest.mark.parametrize("run", AWQ_RUNS)
def test_router_choices_on_calibration_tokens_are_the_sources(make: Make, run: str, tmp_path: Path) -> None:
    """In every layer, for the states that come there, the folded norm and router choose what the source's would."""
    made = make(run)
    model = model_from_integers(made.out, tmp_path / "made")
    unquantized = model_of(original(made.source), made.source, tmp_path / "source")
    for folded, plain in zip(model.model.layers, unquantized.model.layers, strict=True):
        states = seen(model, folded.post_attention_layernorm, before=True)
        found, expected = (chosen(layer, states) for layer in (folded, plain))
        assert torch.equal(found, expected)
        assert len(found.unique(dim=0)) > 10
        assert not torch.equal(found, found.roll(1, 0))


@torch.no_grad()
def chosen(layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """The experts of every token, ascending, int64 [T, k], from the modules' weights."""
    logits = nn.functional.linear(layer.post_attention_layernorm(states), layer.mlp.gate.weight)
    biased = logits.sigmoid() + layer.mlp.e_score_correction_bias
    return biased.topk(SIZE["used"]).indices.sort().values


@dataclass(frozen=True)
class Unrounded:
    """In the place of a Quantized: it serves the very weights that were to be rounded."""

    weights: torch.Tensor

    @property
    def scales(self) -> np.ndarray:
        return np.ones((len(self.weights), 1), np.float32)

    def dequantized(self) -> np.ndarray:
        return self.weights.numpy()


def test_without_rounding_the_folded_model_is_the_source(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All factors between norm, router, w1, w3 and w2 cancel: the output is the source's to float32 rounding."""
    written: dict[str, torch.Tensor] = {}

    def solved(weights: torch.Tensor, *_: Any) -> experts.Solution:
        return experts.Solution(Unrounded(weights.clone()), 0.0, 0.0, None)

    def rows(quantized: Unrounded, part: slice) -> Unrounded:
        return Unrounded(quantized.weights[part])

    def keep(_: folder.PackedFolder, piece: Any, quantized: Unrounded) -> None:
        written[piece.source] = quantized.weights.clone()

    monkeypatch.setattr(experts, "round_weighted", solved)
    monkeypatch.setattr(experts, "rows_of", rows)
    monkeypatch.setattr(folder.PackedFolder, "write_quantized", keep)
    source = sources["bf16"]
    case = Case(source, tmp_path / "M", "awq")
    case.run(tokens=token_set(lengths=(LENGTH,) * DOCUMENTS))

    before, after = original(source), tensors(case.out)
    folded = {name: written[name] if name in written else after[name].float() for name in before}
    assert len(written) == SIZE["layers"] * SIZE["experts"] * 3
    moved = [name for name in before if (folded[name] - before[name]).norm() > 0.01 * before[name].norm()]
    assert len(moved) == len(written) + 2 * SIZE["layers"]
    model, unquantized = (
        model_of(weights, source, tmp_path / name) for name, weights in (("folded", folded), ("source", before))
    )
    for one in (model, unquantized):
        one.double().set_experts_implementation("eager")
    found, expected = (seen(one, one.model.layers[-1]) for one in (model, unquantized))
    assert far_rows(found, expected, 1e-5) == 0


# One solution in two formats


def test_gptq_and_compressed_tensors_are_equal_bit_for_bit(make: Make, tmp_path: Path) -> None:
    """GPTQ's integers taken out with plain torch, those of compressed-tensors with its own package."""
    made = make("gptq")
    other = Case(made.source, tmp_path / "M", "gptq")
    other.run(tokens=token_set(lengths=(LENGTH,) * DOCUMENTS), format_name="compressed-tensors")
    ours = dequantized(made.out, config(made.out)["quantization_config"])
    theirs = tensors(other.out)
    packed = [name for name in theirs if name.endswith(".weight_packed")]
    assert len(packed) == SIZE["layers"] * SIZE["experts"] * 3
    for name in packed:
        module = name.removesuffix(".weight_packed")
        scale = theirs[f"{module}.weight_scale"].float()
        codes = unpack_from_int32(theirs[name], 4, torch.Size(theirs[f"{module}.weight_shape"].tolist()))
        weight = codes.float() * scale.repeat_interleave(codes.shape[1] // scale.shape[1], 1)
        assert torch.equal(weight, ours[f"{module}.weight"]), module
    for name in theirs.keys() & ours.keys():
        assert torch.equal(theirs[name].float(), ours[name]), name
