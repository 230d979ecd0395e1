"""config.json of every M2 variant to hyperparameters, and the configurations that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import BadInput
from quantkit.model.config import hparams_from_config, weight_block
from quantkit.model.spec import HParams

PATH = Path("somewhere/config.json")

# The official file of M2.7, without the keys that nothing reads.
M27: dict[str, Any] = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "hidden_size": 3072,
    "num_hidden_layers": 62,
    "intermediate_size": 1536,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "scoring_func": "sigmoid",
    "use_routing_bias": True,
    "shared_intermediate_size": 0,
    "use_qk_norm": True,
    "qk_norm_type": "per_layer",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000,
    "rotary_dim": 64,
    "attn_type_list": [1] * 62,
    "max_position_embeddings": 204800,
    "vocab_size": 200064,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "use_mtp": True,
    "num_mtp_modules": 3,
    "mtp_transformer_layers": 1,
    "transformers_version": "4.46.1",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "float8_e4m3fn",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
    },
}
EXPECTED = HParams(
    n_layers=62,
    hidden=3072,
    expert_width=1536,
    n_experts=256,
    n_experts_used=8,
    n_heads=48,
    n_kv_heads=8,
    head_dim=128,
    rotary_dim=64,
    vocab=200064,
    context=204800,
    rope_theta=5e6,
    norm_eps=1e-6,
)


def changed(**values: Any) -> dict[str, Any]:
    """M27 with other values; `...` removes a key."""
    config = json.loads(json.dumps(M27)) | values
    return {key: value for key, value in config.items() if value is not ...}


def read(**values: Any) -> HParams:
    return hparams_from_config(changed(**values), PATH)


def test_m27() -> None:
    assert read() == EXPECTED
    assert weight_block(M27, PATH) == (128, 128)


@pytest.mark.parametrize(
    "values",
    [
        {"dtype": ..., "torch_dtype": "bfloat16"},
        {"dtype": ...},
        {"model_type": "minimax"},
        {"architectures": ...},
        {"architectures": None},
        {"architectures": []},
        {"use_mtp": False, "num_mtp_modules": 0},
        {"rope_theta": 5000000.0},
        {"rope_scaling": None},
        {"rope_parameters": None},
        {"rope_parameters": {}},
        {"scoring_func": ..., "use_qk_norm": ..., "qk_norm_type": ..., "tie_word_embeddings": ...},
        # Saved again by transformers 5: both settings of the rotation under one key.
        {
            "rotary_dim": ...,
            "rope_theta": ...,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000000, "partial_rotary_factor": 0.5},
        },
        {"rotary_dim": ..., "rope_parameters": {"rope_theta": 5e6, "partial_rotary_factor": 0.5}},
    ],
)
def test_spellings_of_the_same_model(values: dict[str, Any]) -> None:
    assert read(**values) == EXPECTED


def test_older_members_of_the_family_differ_in_context() -> None:
    older = read(max_position_embeddings=196608, dtype=..., torch_dtype="bfloat16")
    assert older.context == 196608
    assert older == read(max_position_embeddings=196608)


def test_transformers_own_save_is_read(tmp_path: Path) -> None:
    from transformers import MiniMaxM2Config

    arguments = {key: M27[key] for key in ("hidden_size", "num_hidden_layers", "rotary_dim", "head_dim")}
    saved = MiniMaxM2Config(**arguments, architectures=M27["architectures"], max_position_embeddings=204800)
    saved.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert hparams_from_config(config, PATH) == EXPECTED
    del config["rotary_dim"]
    del config["rope_parameters"]["rope_type"]
    assert hparams_from_config(config, PATH) == EXPECTED


@pytest.mark.parametrize(
    ("model_type", "architectures"),
    [
        ("llama", ["LlamaForCausalLM"]),
        ("llama", ["MiniMaxM2ForCausalLM"]),
        ("minimax", ["MiniMaxForCausalLM"]),
        ("minimax", None),
        ("minimax", []),
        ("minimax_m2", ["MixtralForCausalLM"]),
        ("MiniMax_M2", ["MiniMaxM2ForCausalLM"]),
        (None, ["MiniMaxM2ForCausalLM"]),
        (7, 7),
        (["minimax_m2"], ["MiniMaxM2ForCausalLM"]),
        ({}, {}),
        ("minimax_m2", "x"),
        ("minimax_m2", "NotMiniMaxM2ForCausalLMEither"),
        ("minimax_m2", 7),
        ("minimax_m2", True),
    ],
)
def test_other_architectures_are_refused(model_type: object, architectures: object) -> None:
    with pytest.raises(BadInput, match=r"somewhere/config\.json: .*is not supported"):
        read(model_type=model_type, architectures=architectures)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("scoring_func", "softmax"),
        ("use_qk_norm", False),
        ("qk_norm_type", "per_head"),
        ("use_routing_bias", False),
        ("shared_intermediate_size", 1024),
        ("tie_word_embeddings", True),
    ],
)
def test_another_forward_pass_is_refused(key: str, value: object) -> None:
    with pytest.raises(BadInput, match=rf"somewhere/config\.json: {key} is {value!r}; this architecture needs"):
        read(**{key: value})


INTEGERS = [
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts_per_tok",
    "vocab_size",
    "max_position_embeddings",
]


@pytest.mark.parametrize("key", INTEGERS)
@pytest.mark.parametrize("value", [..., None, 0, -1, 1.5, "8", True, [8], {}])
def test_a_size_that_is_no_positive_number_is_refused(key: str, value: object) -> None:
    with pytest.raises(BadInput, match=rf"somewhere/config\.json: {key} is "):
        read(**{key: value})


@pytest.mark.parametrize("value", [..., None, 0, 1, 1.0, -1e-6, "1e-6", True, [], float("nan"), float("inf")])
def test_an_impossible_epsilon_is_refused(value: object) -> None:
    with pytest.raises(BadInput, match=r"somewhere/config\.json: rms_norm_eps is "):
        read(rms_norm_eps=value)


@pytest.mark.parametrize("value", [..., 0, -1, "5000000", [], True, float("nan"), float("inf")])
def test_an_impossible_rope_theta_is_refused(value: object) -> None:
    with pytest.raises(BadInput, match=r"somewhere/config\.json: rope_theta is "):
        read(rope_theta=value)


@pytest.mark.parametrize("value", [..., None, 0, -2, 129, 64.0, "64", True, []])
def test_an_impossible_rotary_dim_is_refused(value: object) -> None:
    with pytest.raises(BadInput, match=r"somewhere/config\.json: rotary_dim is "):
        read(rotary_dim=value)


@pytest.mark.parametrize("factor", ["0.5", None, [], 0, -1, 2.0, float("nan"), float("inf")])
def test_an_impossible_rotary_factor_is_refused(factor: object) -> None:
    with pytest.raises(BadInput, match=r"somewhere/config\.json: "):
        read(rotary_dim=..., rope_parameters={"rope_theta": 5e6, "partial_rotary_factor": factor})


@pytest.mark.parametrize("parameters", [[1], "default", 7, True])
def test_rope_parameters_that_are_no_mapping_are_refused(parameters: object) -> None:
    with pytest.raises(BadInput, match=r"somewhere/config\.json: "):
        read(rope_parameters=parameters)


@pytest.mark.parametrize(
    "values",
    [{"rope_scaling": {"type": "yarn", "factor": 4}}, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e6}}],
)
def test_scaled_rotation_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="scaled rotary embeddings"):
        read(**values)


@pytest.mark.parametrize("missing", [..., None])
def test_a_bf16_variant_has_no_quantization_config(missing: object) -> None:
    config = changed(quantization_config=missing)
    assert hparams_from_config(config, PATH) == EXPECTED
    assert weight_block(config, PATH) == (128, 128)


def test_another_block_is_taken() -> None:
    quantization = M27["quantization_config"] | {"weight_block_size": [64, 256]}
    assert weight_block(changed(quantization_config=quantization), PATH) == (64, 256)


@pytest.mark.parametrize("method", ["awq", "gptq", "compressed-tensors", None, 8])
def test_a_quantized_checkpoint_is_refused(method: object) -> None:
    config = changed(quantization_config={"quant_method": method, "bits": 4, "group_size": 128})
    with pytest.raises(BadInput, match=rf"somewhere/config\.json: already quantized with {method!r}"):
        weight_block(config, PATH)


@pytest.mark.parametrize("value", [{}, [], "awq", "fp8", 4, True])
def test_a_quantization_config_of_another_shape_is_refused(value: object) -> None:
    with pytest.raises(BadInput, match=r"somewhere/config\.json: "):
        weight_block(changed(quantization_config=value), PATH)


@pytest.mark.parametrize("block", [..., None, [128], [128, 0], [128, -128], [128, "128"], "128", [True, 128], 128])
def test_an_impossible_block_is_refused(block: object) -> None:
    quantization = {"quant_method": "fp8"} | ({} if block is ... else {"weight_block_size": block})
    with pytest.raises(BadInput, match=r"weight_block_size is "):
        weight_block(changed(quantization_config=quantization), PATH)
