"""What an INT4 run may be asked for: formats and grids, layers to keep, tensor parallelism, enough tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from quantkit.errors import BadInput
from quantkit.formats.scheme import Attention
from quantkit.model.spec import HParams
from quantkit.quantize.integers import IntegerGrid
from quantkit.run.calibrated.tokens import check_tokens
from quantkit.run.int4.settings import (
    Int4Settings,
    Method,
    check_against_model,
    choose_settings,
    parse_layers,
)

M27 = HParams(
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
    context=196608,
    rope_theta=5e6,
    norm_eps=1e-6,
)


def refused(function: Any, *arguments: Any, naming: tuple[str, ...], **options: Any) -> str:
    with pytest.raises(BadInput) as caught:
        function(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line
    for word in naming:
        assert word in line
    return line


# Methods, formats, grids


@pytest.mark.parametrize(
    ("method", "name", "symmetric"),
    [(Method.AWQ, "awq", False), (Method.GPTQ, "gptq", True), (Method.RTN, "compressed-tensors", True)],
)
def test_defaults(method: Method, name: str, symmetric: bool) -> None:
    assert choose_settings(method) == Int4Settings(method, name, IntegerGrid(4, 128, symmetric))


@pytest.mark.parametrize(
    ("method", "name", "given", "symmetric"),
    [
        (Method.AWQ, "awq", True, True),
        (Method.AWQ, "compressed-tensors", None, True),
        (Method.AWQ, "gptq", None, True),
        (Method.GPTQ, "compressed-tensors", None, True),
        (Method.GPTQ, "awq", None, True),
        (Method.RTN, "awq", None, True),
        (Method.RTN, "awq", False, False),
        (Method.RTN, "gptq", None, True),
    ],
)
def test_formats_that_fit(method: Method, name: str, given: bool | None, symmetric: bool) -> None:
    settings = choose_settings(method, format_name=name, symmetric=given)
    assert (settings.format, settings.grid.symmetric) == (name, symmetric)


@pytest.mark.parametrize(
    ("method", "bits", "size"),
    [
        (method, bits, size)
        for method, bits in ((Method.AWQ, 4), (Method.GPTQ, 4), (Method.GPTQ, 8), (Method.RTN, 8))
        for size in (32, 64, 128, -1)
        if (method, size) != (Method.AWQ, -1)
    ],
)
def test_grids(method: Method, bits: int, size: int) -> None:
    grid = choose_settings(method, bits=bits, group_size=size).grid
    assert (grid.bits, grid.group_size) == (bits, size)


def test_the_rest_is_passed_on() -> None:
    settings = choose_settings(
        Method.AWQ, format_name="compressed-tensors", attention="fp8", then_gptq=True, min_tokens=7
    )
    assert settings.attention is Attention.FP8
    assert (settings.then_gptq, settings.min_tokens, settings.kept_layers) == (True, 7, ())


@pytest.mark.parametrize(
    ("method", "options", "naming"),
    [
        (Method.AWQ, {"bits": 8}, ("--bits 8", "awq", "4")),
        (Method.GPTQ, {"bits": 3}, ("--bits 3", "gptq", "4 or 8")),
        (Method.RTN, {"bits": 0}, ("--bits 0", "4 or 8")),
        (Method.RTN, {"bits": 8, "format_name": "awq"}, ("--bits 8", "awq")),
        (Method.AWQ, {"group_size": 16}, ("--group-size 16", "32, 64, 128")),
        (Method.GPTQ, {"group_size": 0}, ("--group-size 0", "32, 64, 128")),
        (Method.RTN, {"group_size": -2}, ("--group-size -2", "32, 64, 128")),
        (Method.RTN, {"format_name": "gguf"}, ("--format gguf", "awq, gptq, compressed-tensors")),
        (Method.RTN, {"format_name": ""}, ("--format", "awq, gptq, compressed-tensors")),
        (Method.RTN, {"attention": "fp16"}, ("--attention fp16", "bf16, fp8, int4")),
        (Method.AWQ, {"attention": "fp8"}, ("--attention fp8", "compressed-tensors")),
        (Method.GPTQ, {"attention": "fp8"}, ("--attention fp8", "compressed-tensors")),
        (Method.RTN, {"symmetric": False}, ("--asymmetric", "--symmetric", "awq")),
        (Method.AWQ, {"symmetric": False, "format_name": "gptq"}, ("--asymmetric", "--symmetric", "awq")),
    ],
    ids=str,
)
def test_what_a_format_cannot_hold(method: Method, options: dict[str, Any], naming: tuple[str, ...]) -> None:
    refused(choose_settings, method, naming=naming, **options)


# Layers


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("61", (61,)),
        ("0,61", (0, 61)),
        ("58-61", (58, 59, 60, 61)),
        ("61,0, 3 - 4 ,3", (0, 3, 4, 61)),
        ("5-5", (5,)),
        ("0-60", tuple(range(61))),
    ],
)
def test_layers(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text, 62) == layers


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "-1", "1-", "1-2-3", "x", "1.5", "0x1", "1 2", "²", "٣", "9" * 400, "0-" + "9" * 30]
)
def test_what_is_no_list_of_layers(text: str) -> None:
    refused(parse_layers, text, 62, naming=("--keep-layers", repr(text), "0,61"))


@pytest.mark.parametrize("text", ["62", "0,62", "60-62", "0-999999999"])
def test_layers_that_the_model_does_not_have(text: str) -> None:
    refused(parse_layers, text, 62, naming=("--keep-layers", "0 to 61"))


def test_layers_backwards() -> None:
    refused(parse_layers, "61-58", 62, naming=("61-58", "58-61"))


def test_all_layers() -> None:
    refused(parse_layers, "0-61", 62, naming=("0-61", "all layers"))


# Tensor parallelism. formats.md: 1536 / TP has to be whole groups, 48 and 8 heads have to divide.


@pytest.mark.parametrize(
    ("tp", "size"), [(None, 128), (1, 128), (2, 128), (4, 128), (8, 64), (16, 32), (24, 64), (48, 32)]
)
def test_the_default_group_size_follows_tensor_parallelism(tp: int | None, size: int) -> None:
    settings, lines = check_against_model(choose_settings(Method.GPTQ), M27, tp, group_size_given=False)
    assert settings == choose_settings(Method.GPTQ, group_size=size)
    if size == 128:
        assert lines == []
    else:
        (line,) = lines
        assert f"group size {size}" in line
        assert f"--tp {tp}" in line
        assert str(1536 // (tp or 1)) in line


@pytest.mark.parametrize(("tp", "size"), [(8, 64), (8, 32), (16, 32), (8, -1), (16, -1), (4, 128)])
def test_given_group_sizes_that_fit(tp: int, size: int) -> None:
    settings = choose_settings(Method.GPTQ, group_size=size)
    assert check_against_model(settings, M27, tp, group_size_given=True) == (settings, [])


@pytest.mark.parametrize(
    ("tp", "size", "remedy"), [(8, 128, "--group-size 64 or 32 or -1"), (16, 64, "--group-size 32 or -1")]
)
def test_given_group_sizes_that_do_not_fit(tp: int, size: int, remedy: str) -> None:
    settings = choose_settings(Method.GPTQ, group_size=size)
    refused(check_against_model, settings, M27, tp, True, naming=(f"--group-size {size}", f"--tp {tp}", remedy))


@pytest.mark.parametrize("tp", [3, 5, 6, 7, 9, 12, 32, 96, 1000])
def test_tensor_parallelism_that_the_model_does_not_allow(tp: int) -> None:
    settings = choose_settings(Method.GPTQ)
    refused(check_against_model, settings, M27, tp, False, naming=(f"--tp {tp}:", "1, 2, 4, 8, 16, 24, 48"))


def test_expert_width_decides_as_well() -> None:
    odd = replace(M27, expert_width=1536 + 128 * 5 // 64)  # 1546 = 2 * 773
    settings = choose_settings(Method.GPTQ, group_size=-1)
    refused(check_against_model, settings, odd, 4, True, naming=("--tp 4", "1546", "1, 2"))


def test_no_group_size_fits_the_shards() -> None:
    narrow = replace(M27, expert_width=192)
    settings = choose_settings(Method.GPTQ)
    line = refused(check_against_model, settings, narrow, 8, False, naming=("--tp 8", "24", "--group-size -1"))
    assert line.startswith("--tp 8:"), "what was given is named, not the default"
    whole_rows = choose_settings(Method.GPTQ, group_size=-1)
    assert check_against_model(whole_rows, narrow, 8, True) == (whole_rows, [])


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("change", "what"), [({"expert_width": 192}, "experts' width"), ({"hidden": 192}, "hidden size")]
)
def test_group_size_that_does_not_divide_the_model(change: dict[str, int], what: str, given: bool) -> None:
    hparams = replace(M27, **change)
    naming = ("--group-size 128", what, "192", "--group-size 64 or 32")
    refused(check_against_model, choose_settings(Method.RTN), hparams, None, given, naming=naming)


def test_attention_counts_where_it_is_quantized() -> None:
    hparams = replace(M27, n_heads=3, n_kv_heads=1, head_dim=64)  # the output projection has 192 columns
    plain = choose_settings(Method.RTN)
    assert check_against_model(plain, hparams, None, False) == (plain, [])
    naming = ("--group-size 128", "attention's output", "192", "--group-size 64 or 32")
    refused(check_against_model, choose_settings(Method.RTN, attention="int4"), hparams, None, False, naming=naming)


# Tokens


def test_enough_tokens() -> None:
    check_tokens(1024, M27)  # 1024 x 8 / 256 = 32 per expert
    naming = ("--tokens t", "1,023", "31.97", "1,024", "--samples")
    refused(check_tokens, 1023, M27, "--tokens t", naming=naming)
    refused(check_tokens, 1, M27, naming=("calibration", "1,024"))


def test_the_number_of_tokens_needed_is_enough() -> None:
    for experts, used in ((7, 3), (16, 4), (1, 1), (256, 9)):
        hparams = replace(M27, n_experts=experts, n_experts_used=used)
        needed = next(count for count in range(1, 2000) if count * used / experts >= 32)
        check_tokens(needed, hparams)
        refused(check_tokens, needed - 1, hparams, naming=(f"{needed:,}",))
