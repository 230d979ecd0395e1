"""Layer figures of damaged models: each damage shows where it is and in the figure that is meant to show it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import Damage
from safetensors.torch import load_file, save_file
from streamed_models import QuantizedModels
from torch import Tensor
from torch.nn import functional
from transformers import MiniMaxM2ForCausalLM
from transformers_reference import model_from_checkpoint, model_from_gguf

from quantkit.errors import BadInput
from quantkit.verify.divergence.layers import LayerFigures, compare_layers, first_tokens, layer_figures, summary
from quantkit.verify.records import Passage

LAYERS, EXPERTS, USED = 4, 16, 4
LAYER, EXPERT = 2, 5
ROWS = 64
MOE = f"model.layers.{LAYER}.block_sparse_moe."
GATE, BIAS = MOE + "gate.weight", MOE + "e_score_correction_bias"
OUTPUT = f"model.layers.{LAYER}.self_attn.o_proj.weight_scale_inv"


@pytest.fixture(scope="module")
def models(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModels:
    return QuantizedModels(tiny_m2, tmp_path_factory.getbasetemp() / "streamed_models")


@pytest.fixture(scope="module")
def passages(models: QuantizedModels) -> list[Passage]:
    return models.passages(each=3)


@pytest.fixture
def damage(tiny_m2: Path, tmp_path: Path) -> Damage:
    return Damage(Path(shutil.copytree(tiny_m2, tmp_path / "checkpoint")))


@pytest.fixture
def compare(models: QuantizedModels, passages: list[Passage]) -> Callable[[Path], LayerFigures]:
    return lambda path: compare_layers(models.source, path, passages, rows_per_expert=ROWS, quiet=True)


def change(damage: Damage, name: str, new: Callable[[Tensor], Tensor]) -> None:
    damage.replace(name, new(load_file(damage.shard_of(name))[name]))


def expert(number: int, matrix: str, part: str = "weight_scale_inv") -> str:
    return f"{MOE}experts.{number}.{matrix}.{part}"


def undamaged(found: LayerFigures, *, but: tuple[str, ...]) -> None:
    """Everything else is what the model against itself gives, exactly; `but` names the damaged figures."""
    mask = np.ones((LAYERS, EXPERTS), bool)
    if "expert" in but:
        mask[LAYER, EXPERT] = False
    elif "experts" in but:
        mask[LAYER] = False
    layers = np.arange(LAYERS) != LAYER
    assert (found.error[mask] == 0).all()
    assert (found.gain[mask] == 1).all()
    assert (found.routing[layers if "routing" in but else slice(None)] == 1).all()
    assert (found.attention_error[layers if "attention" in but else slice(None)] == 0).all()
    assert (found.attention_gain[layers if "attention" in but else slice(None)] == 1).all()


def test_the_model_against_itself(models: QuantizedModels, compare: Callable[[Path], LayerFigures]) -> None:
    found = compare(models.source)
    undamaged(found, but=())
    assert (found.rows == ROWS).all()


def test_an_expert_of_zeros(damage: Damage, compare: Callable[[Path], LayerFigures]) -> None:
    change(damage, expert(EXPERT, "w2"), torch.zeros_like)
    found = compare(damage.folder)
    undamaged(found, but=("expert",))
    assert found.gain[LAYER, EXPERT] == 0
    assert found.error[LAYER, EXPERT] == 1
    assert summary(found)["expert_gain_min"] == 0


def test_scales_that_are_too_large(damage: Damage, compare: Callable[[Path], LayerFigures]) -> None:
    for number in range(EXPERTS):
        change(damage, expert(number, "w2"), lambda scale: scale * 1.05)
    found = compare(damage.folder)
    undamaged(found, but=("experts",))
    np.testing.assert_allclose(found.gain[LAYER], 1.05, rtol=1e-5)
    np.testing.assert_allclose(found.error[LAYER], 0.05, rtol=1e-3)


def test_w1_and_w3_swapped(damage: Damage, compare: Callable[[Path], LayerFigures]) -> None:
    for number in range(EXPERTS):
        for part in ("weight", "weight_scale_inv"):
            names = [expert(number, matrix, part) for matrix in ("w1", "w3")]
            tensors = [load_file(damage.shard_of(name))[name] for name in names]
            for name, tensor in zip(names, reversed(tensors), strict=True):
                damage.replace(name, tensor)
    found = compare(damage.folder)
    undamaged(found, but=("experts",))
    assert np.median(found.error[LAYER]) > 0.6
    assert found.error[LAYER].min() > 0.3
    assert np.median(found.gain[LAYER]) < 0.9


def test_a_router_of_four_bits(damage: Damage, compare: Callable[[Path], LayerFigures]) -> None:
    def round_to_four_bits(gate: Tensor) -> Tensor:
        groups = gate.float().unflatten(1, (-1, 128))
        scale = groups.abs().amax(-1, keepdim=True) / 7
        return ((groups / scale).round() * scale).flatten(1).to(gate.dtype)

    change(damage, GATE, round_to_four_bits)
    found = compare(damage.folder)
    undamaged(found, but=("routing",))
    assert found.routing[LAYER] < 0.95


def test_a_correction_bias_that_was_dropped(damage: Damage, compare: Callable[[Path], LayerFigures]) -> None:
    change(damage, BIAS, torch.zeros_like)
    found = compare(damage.folder)
    undamaged(found, but=("routing",))
    assert found.routing[LAYER] < 0.95


def test_an_attention_of_other_size(damage: Damage, compare: Callable[[Path], LayerFigures]) -> None:
    change(damage, OUTPUT, lambda scale: scale * 1.05)
    found = compare(damage.folder)
    undamaged(found, but=("attention",))
    assert found.attention_gain[LAYER] == pytest.approx(1.05, rel=1e-5)
    assert found.attention_error[LAYER] == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("where", ["expert", "attention"])
def test_sums_that_overflow(damage: Damage, compare: Callable[[Path], LayerFigures], where: str) -> None:
    change(damage, expert(EXPERT, "w2") if where == "expert" else OUTPUT, lambda scale: torch.full_like(scale, 5e35))
    found = compare(damage.folder)
    undamaged(found, but=(where,))
    error, gain = (
        (found.error[LAYER, EXPERT], found.gain[LAYER, EXPERT])
        if where == "expert"
        else (found.attention_error[LAYER], found.attention_gain[LAYER])
    )
    assert error == np.inf
    assert np.isnan(gain)
    name = f"{where}_error_max"
    assert summary(found)[name] == np.inf


def test_weights_that_are_nan(models: QuantizedModels, passages: list[Passage], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models.int4("rtn"), tmp_path / "nan"))
    tensors = load_file(folder / "model.safetensors")
    tensors[expert(EXPERT, "w1", "weight_scale")].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = compare_layers(models.source, folder, passages, quiet=True)
    assert np.argwhere(np.isinf(found.error)).tolist() == [[LAYER, EXPERT]]


def test_awq_folds_factors_that_outputs_do_not_show(
    models: QuantizedModels, compare: Callable[[Path], LayerFigures]
) -> None:
    folded = models.int4("awq")
    assert not torch.equal(*(norm_of(folder) for folder in (folded, models.source)))
    found = compare(folded)
    assert found.error.max() < 0.25
    assert np.median(found.gain) == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(found.gain, 1, atol=0.05)
    assert found.routing.min() > 0.99
    assert found.attention_error.max() < 0.005


def norm_of(folder: Path) -> Tensor:
    name = f"model.layers.{LAYER}.post_attention_layernorm.weight"
    (shard,) = [path for path in folder.glob("*.safetensors") if name in (tensors := load_file(path))]
    tensors = load_file(shard)
    return tensors[name].float()


def test_figures_are_those_of_transformers_modules(models: QuantizedModels, passages: list[Passage]) -> None:
    """With as many rows as tokens every expert sees all of them."""
    tokens = sum(len(passage.ids) for passage in passages)
    found = compare_layers(models.source, models.gguf("q4_k_m"), passages, rows_per_expert=tokens, quiet=True)
    assert (found.rows == tokens).all()
    whole = model_from_checkpoint(models.source)
    other = model_from_gguf([models.gguf("q4_k_m")], models.source / "config.json")
    residual = residual_before_experts(whole, passages)
    for number in (0, EXPERT):
        ours, theirs = (expert_output(model, residual, number).double() for model in (whole, other))
        assert found.error[LAYER, number] == pytest.approx(float((theirs - ours).norm() / ours.norm()), rel=1e-4)
        assert found.gain[LAYER, number] == pytest.approx(float((theirs * ours).sum() / ours.square().sum()), rel=1e-5)


def test_routing_is_that_of_transformers_routers(
    models: QuantizedModels, damage: Damage, passages: list[Passage], compare: Callable[[Path], LayerFigures]
) -> None:
    change(damage, GATE, lambda gate: gate + 0.3 * gate.std() * torch.randn(gate.shape, generator=seeded()))
    whole, other = model_from_checkpoint(models.source), model_from_checkpoint(damage.folder)
    residual = residual_before_experts(whole, passages)
    sets = [chosen_experts(model, residual) for model in (whole, other)]
    share = float((sets[0] == sets[1]).all(1).double().mean())
    assert 0.2 < share < 0.95
    assert compare(damage.folder).routing[LAYER] == pytest.approx(share, abs=0.003)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(2)


@torch.no_grad()
def residual_before_experts(model: MiniMaxM2ForCausalLM, passages: list[Passage]) -> Tensor:
    seen: list[Tensor] = []
    norm = model.model.layers[LAYER].post_attention_layernorm
    hook = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
    for passage in passages:
        model(torch.from_numpy(passage.ids).long()[None])
    hook.remove()
    return torch.cat(seen)


@torch.no_grad()
def expert_output(model: MiniMaxM2ForCausalLM, residual: Tensor, number: int) -> Tensor:
    layer = model.model.layers[LAYER]
    gate, up = (layer.post_attention_layernorm(residual) @ layer.mlp.experts.gate_up_proj[number].T).chunk(2, -1)
    return (functional.silu(gate) * up) @ layer.mlp.experts.down_proj[number].T


@torch.no_grad()
def chosen_experts(model: MiniMaxM2ForCausalLM, residual: Tensor) -> Tensor:
    layer = model.model.layers[LAYER]
    scores = torch.sigmoid(layer.post_attention_layernorm(residual) @ layer.mlp.gate.weight.T)
    return (scores + layer.mlp.e_score_correction_bias).topk(USED).indices.sort(1).values


def test_what_the_report_gets(models: QuantizedModels, passages: list[Passage]) -> None:
    found = layer_figures(models.source, models.gguf("q2_k"), passages, quiet=True)
    assert {name: list(np.shape(values)) for name, values in found["maps"].items()} == {
        "error": [LAYERS, EXPERTS],
        "gain": [LAYERS, EXPERTS],
        "rows": [LAYERS, EXPERTS],
        "routing": [LAYERS],
        "attention_error": [LAYERS],
        "attention_gain": [LAYERS],
    }
    figures = found["figures"]
    assert figures["expert_error_max"] == np.max(found["maps"]["error"]) > figures["expert_error_median"] > 0.1
    assert figures["expert_gain_min"] < figures["expert_gain_max"]
    assert figures["routing_min"] == 1  # routers stay as they are in a GGUF
    assert figures["attention_error_max"] > 0.1


def test_models_of_other_dimensions(models: QuantizedModels, small_checkpoint: Path, passages: list[Passage]) -> None:
    with pytest.raises(BadInput) as error:
        compare_layers(models.source, small_checkpoint, passages, quiet=True)
    assert f"{small_checkpoint}: n_layers is 2, that of {models.source} is 4" in str(error.value)


def test_a_limited_number_of_tokens_of_all_domains() -> None:
    found = [Passage(domain, str(n), np.zeros(100, np.int32)) for domain in ("code", "prose") for n in range(9)]
    chosen = first_tokens(found, 350)
    assert [(one.domain, one.name, len(one.ids)) for one in chosen] == [
        ("code", "0", 100), ("prose", "0", 100), ("code", "1", 100), ("prose", "1", 50)
    ]  # fmt: skip
    assert len(first_tokens(found, 10**6)) == 18
    assert [len(one.ids) for one in first_tokens(found, 301)] == [100, 100, 100]
