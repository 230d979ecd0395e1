"""A checkpoint's tensors against the architecture's table."""

import json
import math
from pathlib import Path

import pytest
import torch
from harness import Damage
from safetensors.torch import load_file

from quantkit.checkpoint.index import open_checkpoint
from quantkit.errors import BadInput
from quantkit.model.spec import Kind, Model
from quantkit.model.tensors import build_model

LAYER = "model.layers.0."
MOE = LAYER + "block_sparse_moe."
EXPERT = MOE + "experts.1.w2.weight"
EVERY_ROLE = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    LAYER + "input_layernorm.weight",
    LAYER + "post_attention_layernorm.weight",
    *(LAYER + f"self_attn.{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
    MOE + "gate.weight",
    MOE + "e_score_correction_bias",
    *(MOE + f"experts.1.{name}.weight" for name in ("w1", "w2", "w3")),
]
FP8 = [name for name in EVERY_ROLE if "_proj" in name or ".experts." in name]


def build(folder: Path) -> Model:
    return build_model(open_checkpoint(folder))


def stored(damaged: Damage, name: str) -> torch.Tensor:
    return load_file(damaged.shard_of(name))[name]


def test_every_tensor_has_its_place(small_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(small_checkpoint)
    model = build_model(checkpoint)
    names = [name for tensor in model.tensors for name in (*tensor.sources, *tensor.scales) if name is not None]
    assert sorted(names) == sorted(checkpoint.tensors)
    assert len(model.tensors) == 3 + 13 * model.hparams.n_layers
    assert len({tensor.gguf for tensor in model.tensors}) == len(model.tensors)
    assert model.ignored == ()
    for tensor in model.tensors:
        for source, scale in zip(tensor.sources, tensor.scales, strict=True):
            entry = checkpoint.tensors[source]
            assert entry.shape == tensor.source_shape
            assert (scale == source + "_scale_inv") == (entry.dtype == "F8_E4M3")


def test_experts_are_stacked_in_the_order_of_their_ids(small_checkpoint: Path) -> None:
    model = build(small_checkpoint)
    down = next(tensor for tensor in model.tensors if tensor.gguf == "blk.1.ffn_down_exps.weight")
    experts = range(model.hparams.n_experts)
    assert down.shape == (model.hparams.n_experts, model.hparams.hidden, model.hparams.expert_width)
    assert down.sources == tuple(f"model.layers.1.block_sparse_moe.experts.{e}.w2.weight" for e in experts)


@pytest.mark.parametrize(
    ("gguf", "source"),
    [
        ("blk.0.ffn_gate_exps.weight", MOE + "experts.0.w1.weight"),
        ("blk.0.ffn_up_exps.weight", MOE + "experts.0.w3.weight"),
        ("blk.0.ffn_gate_inp.weight", MOE + "gate.weight"),
        ("blk.0.exp_probs_b.bias", MOE + "e_score_correction_bias"),
        ("blk.0.ffn_norm.weight", LAYER + "post_attention_layernorm.weight"),
        ("blk.0.attn_output.weight", LAYER + "self_attn.o_proj.weight"),
        ("output.weight", "lm_head.weight"),
    ],
)
def test_names_in_the_gguf(small_checkpoint: Path, gguf: str, source: str) -> None:
    assert next(tensor.sources[0] for tensor in build(small_checkpoint).tensors if tensor.gguf == gguf) == source


def test_a_bf16_checkpoint_has_no_scales(bf16_small_checkpoint: Path, small_checkpoint: Path) -> None:
    model, fp8 = build(bf16_small_checkpoint), build(small_checkpoint)
    assert {scale for tensor in model.tensors for scale in tensor.scales} == {None}
    assert [(tensor.gguf, tensor.shape) for tensor in model.tensors] == [(t.gguf, t.shape) for t in fp8.tensors]
    assert model.hparams == fp8.hparams


def test_dimensions_are_those_of_transformers(small_checkpoint: Path) -> None:
    from transformers import AutoConfig, MiniMaxM2ForCausalLM

    config = AutoConfig.from_pretrained(small_checkpoint)
    config.quantization_config = None
    with torch.device("meta"):
        theirs = MiniMaxM2ForCausalLM(config)
    ours = build(small_checkpoint)
    h = ours.hparams
    assert h.rope_theta == config.rope_parameters["rope_theta"]
    assert h.rotary_dim == theirs.model.rotary_emb.inv_freq.numel() * 2
    assert h.norm_eps == config.rms_norm_eps
    sizes = {tensor.gguf: tensor.shape for tensor in ours.tensors}
    # transformers fuses gate and up of all experts into one parameter and keeps the routing bias as a buffer.
    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert sum(math.prod(shape) for shape in sizes.values()) == sum(math.prod(shape) for shape in shapes.values())
    fused = [shape for name, shape in shapes.items() if name.endswith("experts.gate_up_proj")]
    assert fused == [(h.n_experts, 2 * h.expert_width, h.hidden)] * h.n_layers
    assert sizes["blk.0.ffn_gate_exps.weight"] == sizes["blk.0.ffn_up_exps.weight"]
    assert sizes["blk.0.ffn_gate_exps.weight"] == (h.n_experts, h.expert_width, h.hidden)
    plain = [
        tensor.shape for tensor in ours.tensors if not tensor.gguf.endswith(("gate_exps.weight", "up_exps.weight"))
    ]
    assert sorted(plain) == sorted(shape for shape in shapes.values() if shape not in fused)


def test_kinds_decide_what_may_be_quantized(small_checkpoint: Path) -> None:
    kinds = {tensor.gguf: tensor.role.kind for tensor in build(small_checkpoint).tensors}
    assert kinds["blk.0.ffn_gate_inp.weight"] is kinds["blk.0.exp_probs_b.bias"] is Kind.ROUTER
    assert kinds["blk.0.attn_q_norm.weight"] is kinds["output_norm.weight"] is Kind.NORM
    assert kinds["blk.0.ffn_down_exps.weight"] is Kind.EXPERT


@pytest.mark.parametrize("name", EVERY_ROLE)
def test_a_missing_tensor_is_named(damaged: Damage, name: str) -> None:
    damaged.edit_tensors(damaged.shard_of(name), **{name: ...})
    with pytest.raises(BadInput, match=rf"{damaged.folder}: tensor {name} is missing"):
        build(damaged.folder)


@pytest.mark.parametrize("name", EVERY_ROLE)
def test_a_wrong_shape_is_named(damaged: Damage, name: str) -> None:
    right = list(stored(damaged, name).shape)
    # One more row; a transposed square matrix would not show.
    wrong = [right[0] + 1, *right[1:]]
    shard = damaged.replace(name, torch.zeros(wrong).to(stored(damaged, name).dtype))
    with pytest.raises(BadInput) as refusal:
        build(damaged.folder)
    assert str(refusal.value) == f"{shard}: tensor {name} has shape {wrong}, expected {right}"


@pytest.mark.parametrize("name", EVERY_ROLE)
def test_a_wrong_dtype_is_named(damaged: Damage, name: str) -> None:
    shard = damaged.replace(name, torch.zeros(stored(damaged, name).shape, dtype=torch.int32))
    with pytest.raises(BadInput, match=rf"{shard}: tensor {name} is I32, expected "):
        build(damaged.folder)


@pytest.mark.parametrize("name", [name for name in EVERY_ROLE if name not in FP8])
def test_fp8_where_no_runtime_has_it_is_refused(damaged: Damage, name: str) -> None:
    damaged.replace(name, torch.zeros(stored(damaged, name).shape).to(torch.float8_e4m3fn))
    with pytest.raises(BadInput, match=rf"tensor {name} is F8_E4M3, expected BF16 or F16 or F32"):
        build(damaged.folder)


@pytest.mark.parametrize("name", FP8)
def test_a_missing_scale_is_named(damaged: Damage, name: str) -> None:
    scale = name + "_scale_inv"
    damaged.edit_tensors(damaged.shard_of(scale), **{scale: ...})
    with pytest.raises(BadInput, match=rf"tensor {scale} is missing; {name} is FP8"):
        build(damaged.folder)


@pytest.mark.parametrize("name", FP8)
def test_a_scale_of_the_wrong_shape_is_named(damaged: Damage, name: str) -> None:
    scale = name + "_scale_inv"
    right = list(stored(damaged, scale).shape)
    shard = damaged.replace(scale, torch.ones(right[0], right[1] + 1))
    with pytest.raises(BadInput) as refusal:
        build(damaged.folder)
    assert str(refusal.value) == f"{shard}: tensor {scale} has shape {[right[0], right[1] + 1]}, expected {right}"


def test_a_scale_of_a_bf16_weight_is_unknown(damaged: Damage) -> None:
    damaged.replace(EXPERT, torch.zeros(stored(damaged, EXPERT).shape, dtype=torch.bfloat16))
    with pytest.raises(BadInput, match=rf"tensor {EXPERT}_scale_inv is not known"):
        build(damaged.folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.input_layernorm.weight",  # the model has one layer
        MOE + "experts.2.w1.weight",  # and two experts
        "model.layers.4.input_layernorm.weight",  # three prediction layers: 1 to 3
        "model.layers.0.self_attn.k_scale",
        "x",
        "",
        "модель 🙂",
    ],
)
def test_an_unknown_tensor_is_named(damaged: Damage, name: str) -> None:
    damaged.edit_json("config.json", num_mtp_modules=3 if ".4." in name else 0)
    shard = damaged.shard_of("model.norm.weight")
    damaged.edit_tensors(shard, **{name: torch.zeros(4)})
    with pytest.raises(BadInput) as refusal:
        build(damaged.folder)
    assert str(refusal.value).startswith(f"{shard}: tensor {name} is not known to MiniMaxM2ForCausalLM")


def add_prediction_layers(damaged: Damage) -> list[str]:
    names = [f"model.layers.{layer}.{name}" for layer in (1, 2, 3) for name in ("enorm.weight", "eh_proj.weight")]
    damaged.edit_tensors(damaged.shard_of("model.norm.weight"), **{name: torch.zeros(4) for name in names})
    return names


def test_prediction_layers_are_left_aside(damaged: Damage) -> None:
    before = build(damaged.folder)
    names = add_prediction_layers(damaged)
    model = build(damaged.folder)
    assert sorted(model.ignored) == sorted(names)
    assert model.tensors == before.tensors


@pytest.mark.parametrize(
    "values",
    [{"use_mtp": False}, {"use_mtp": ...}, {"num_mtp_modules": 2}, {"num_mtp_modules": ...}, {"num_mtp_modules": None}],
)
def test_prediction_layers_that_the_config_does_not_announce_are_unknown(
    damaged: Damage, values: dict[str, object]
) -> None:
    add_prediction_layers(damaged)
    damaged.edit_json("config.json", **values)
    with pytest.raises(BadInput, match=r"is not known to MiniMaxM2ForCausalLM"):
        build(damaged.folder)


@pytest.mark.parametrize("value", ["3", [3], {"a": 1}])
def test_a_number_of_prediction_layers_of_the_wrong_type_is_refused(damaged: Damage, value: object) -> None:
    add_prediction_layers(damaged)
    damaged.edit_json("config.json", num_mtp_modules=value)
    with pytest.raises(BadInput):
        build(damaged.folder)


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_local_experts"])
def test_a_config_that_promises_more_than_there_is_is_refused_at_once(damaged: Damage, key: str) -> None:
    damaged.edit_json("config.json", **{key: 3_000_000})
    with pytest.raises(BadInput, match=r"tensor .* is missing|gate.weight has shape"):
        build(damaged.folder)


def test_a_scale_may_be_in_another_shard(small_checkpoint: Path) -> None:
    weight_map = json.loads((small_checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    apart = [name for name in weight_map if weight_map.get(name + "_scale_inv", weight_map[name]) != weight_map[name]]
    assert apart, "the synthetic checkpoint no longer has this trap"
    assert build(small_checkpoint).tensors
