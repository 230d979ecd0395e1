"""Tokens whose state becomes NaN or infinite: left out, counted by layer and expert, and seen by no statistic."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from harness import Cli, CliResult, Damage
from safetensors.numpy import save_file
from safetensors.torch import load_file
from transformers import AutoTokenizer

LAYERS, USED, EXPERT = 4, 4, 3
DOCUMENTS, LENGTH = 40, 24
TOKENS = DOCUMENTS * LENGTH
PREFIX = "model.layers.1."
DOWN = PREFIX + f"block_sparse_moe.experts.{EXPERT}.w2.weight_scale_inv"
OUTPUT = PREFIX + "self_attn.o_proj.weight_scale_inv"
VALUE = PREFIX + "self_attn.v_proj.weight_scale_inv"


@pytest.fixture(scope="module")
def tokens(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = (tiny_m2 / "heldout" / "text_code.txt").read_text()
    ids = np.array(AutoTokenizer.from_pretrained(tiny_m2)(text)["input_ids"][:TOKENS], np.int32)
    path = tmp_path_factory.mktemp("tokens") / "tokens.safetensors"
    save_file({"ids": ids.reshape(DOCUMENTS, LENGTH)}, path)
    return path


@pytest.fixture
def run(cli: Cli, tiny_m2: Path, tokens: Path, tmp_path: Path) -> Callable[..., CliResult]:
    """`quantkit imatrix` on the fixture, with the block scales called `scales` so large that its products overflow."""

    def imatrix(*scales: str, name: str = "i", options: tuple[str, ...] = ()) -> CliResult:
        source = Path(shutil.copytree(tiny_m2, tmp_path / f"checkpoint-{name}"))
        damage = Damage(source)
        for scale in scales:
            before = load_file(damage.shard_of(scale))[scale]
            # The weights themselves, up to 448 times this, are finite; their sums over a row are not.
            damage.replace(scale, torch.full_like(before, 5e35))
        arguments = ("-o", tmp_path / f"{name}.gguf", "--tokens", tokens, "--json", "--precision", "float32")
        return cli("imatrix", source, *arguments, *options)

    return imatrix


def values(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def test_an_expert_that_overflows(run: Callable[..., CliResult], tmp_path: Path) -> None:
    clean = run(name="clean").json()
    assert clean["excluded_tokens"] == []
    result = run(DOWN)
    assert result.code == 0, result.err
    before, after = (json.loads((tmp_path / f"{name}.coverage.json").read_text()) for name in ("clean", "i"))
    routed = [[layer["routed"] for layer in report["coverage"]["layers"]] for report in (before, after)]
    # Up to that layer nothing differs; there, every token that the expert got is lost; behind it, they are missing.
    assert routed[0][:2] == routed[1][:2]
    lost = routed[0][1][EXPERT]
    assert 0 < lost < TOKENS
    assert result.json()["excluded_tokens"] == [{"layer": 1, "expert": EXPERT, "tokens": lost}]
    assert after["excluded_tokens"] == result.json()["excluded_tokens"]
    assert [sum(layer) for layer in routed[1]] == [TOKENS * USED] * 2 + [(TOKENS - lost) * USED] * 2
    found = values(tmp_path / "i.gguf")
    assert all(np.isfinite(value).all() for value in found.values())
    assert found["blk.1.attn_q.weight.counts"].item() == TOKENS
    assert found["blk.2.attn_q.weight.counts"].item() == TOKENS - lost
    # The inputs of the expert's own matrices were fine.
    for name in ("blk.1.ffn_down_exps.weight.in_sum2", "blk.1.ffn_up_exps.weight.in_sum2"):
        np.testing.assert_array_equal(found[name], values(tmp_path / "clean.gguf")[name])


def test_what_the_terminal_says(run: Callable[..., CliResult], cli: Cli, tokens: Path, tmp_path: Path) -> None:
    count = run(DOWN).json()["excluded_tokens"][0]["tokens"]
    result = cli("imatrix", tmp_path / "checkpoint-i", "-o", tmp_path / "again.gguf", "--tokens", tokens)
    (line,) = [line for line in result.out.splitlines() if line.startswith("excluded: ")]
    assert line == f"excluded: {count} tokens became NaN or infinite in layer 1, expert {EXPERT}"


def test_topped_up_tokens_that_overflow_are_not_lost(run: Callable[..., CliResult], tmp_path: Path) -> None:
    """The floor sends every token through the expert, but only routed tokens live on its output."""
    lost = [run(DOWN, name=f"floor-{floor}", options=("--min-tokens-per-expert", floor)).json() for floor in "09"]
    every = run(DOWN, options=("--min-tokens-per-expert", str(TOKENS))).json()
    assert lost[0]["excluded_tokens"] == lost[1]["excluded_tokens"] == every["excluded_tokens"]


def test_attention_that_overflows_behind_its_projection(run: Callable[..., CliResult]) -> None:
    result = run(OUTPUT)
    if result.code == 0:
        assert result.json()["excluded_tokens"] == [{"layer": 1, "expert": None, "tokens": TOKENS}]
    else:
        # No token is left for the layers behind.
        assert "layer 1" in result.err


def test_attention_that_overflows(run: Callable[..., CliResult], tmp_path: Path) -> None:
    """Some value heads of some tokens: these and the later tokens of their documents are lost."""
    result = run(VALUE)
    assert len(result.error_lines) <= 1
    if result.code == 0:
        assert result.json()["excluded_tokens"][0]["layer"] == 1
        assert all(np.isfinite(value).all() for value in values(tmp_path / "i.gguf").values())
    else:
        assert "layer 1" in result.err
        assert not (tmp_path / "i.gguf").exists()


def test_two_experts_and_their_tokens_are_counted_once(run: Callable[..., CliResult], tmp_path: Path) -> None:
    other = DOWN.replace(f"experts.{EXPERT}", f"experts.{EXPERT + 4}")
    found = run(DOWN, other).json()["excluded_tokens"]
    assert [(entry["layer"], entry["expert"]) for entry in found] == [(1, EXPERT), (1, EXPERT + 4)]
    report = json.loads((tmp_path / "i.coverage.json").read_text())
    lost = sum(entry["tokens"] for entry in found)
    assert sum(report["coverage"]["layers"][2]["routed"]) == (TOKENS - lost) * USED
    assert lost < sum(report["coverage"]["layers"][1]["routed"][expert] for expert in (EXPERT, EXPERT + 4))


def test_perplexity_is_refused_then(run: Callable[..., CliResult], cli: Cli, tmp_path: Path, tiny_m2: Path) -> None:
    run(DOWN)
    text = tiny_m2 / "heldout" / "text_docs.txt"
    result = cli("perplexity", tmp_path / "checkpoint-i", "--text", text)
    assert result.code == 1
    assert result.out == ""
    assert f"layer 1, expert {EXPERT}" in result.err
    assert len(result.error_lines) == 1
