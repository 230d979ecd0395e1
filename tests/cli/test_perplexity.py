"""`quantkit perplexity`: the number that a whole-model run gives, and every bad input in one line."""

from __future__ import annotations

import json
import math
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from harness import Cli, Damage
from refusals import refusal
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, MiniMaxM2ForCausalLM
from transformers_reference import model_from_checkpoint

LENGTH = 300
KEYS = {
    "perplexity", "standard_error", "scored_tokens", "tokens", "documents", "sequence_length", "tokens_sha256",
    "precision", "seconds", "peak_rss_bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((tiny_m2 / "heldout" / "text_docs.txt").read_text()[:4000])
    return path


@pytest.fixture(scope="module")
def bf16_copy(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture with its weights dequantized by torch and rounded to BF16."""
    folder = tmp_path_factory.mktemp("bf16") / "checkpoint"
    shutil.copytree(tiny_m2, folder, ignore=shutil.ignore_patterns("*.safetensors", "heldout", "*index.json"))
    config = json.loads((tiny_m2 / "config.json").read_text())
    rows, columns = config.pop("quantization_config")["weight_block_size"]
    (folder / "config.json").write_text(json.dumps(config))
    stored: dict[str, torch.Tensor] = {}
    for shard in tiny_m2.glob("*.safetensors"):
        stored |= load_file(shard)
    weights = {name: tensor for name, tensor in stored.items() if not name.endswith("_scale_inv")}
    for name, scale in stored.items():
        if name.endswith("_scale_inv"):
            weight = weights[name.removesuffix("_scale_inv")].float()
            spread = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
            weight *= spread[: weight.shape[0], : weight.shape[1]]
            weights[name.removesuffix("_scale_inv")] = weight.bfloat16()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@cache
def whole_model(folder: Path) -> MiniMaxM2ForCausalLM:
    """transformers' model with a checkpoint's weights. Of a BF16 one it is told that scales exist; it finds none."""
    if (folder / "model.safetensors.index.json").exists():
        return model_from_checkpoint(folder)
    copy = Path(shutil.copytree(folder, folder.with_name("as-fp8")))
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    config = json.loads((copy / "config.json").read_text()) | {"quantization_config": {"weight_block_size": [128, 128]}}
    (copy / "config.json").write_text(json.dumps(config))
    return model_from_checkpoint(copy)


@torch.no_grad()
def expected(folder: Path, text: Path, length: int) -> tuple[list[float], int]:
    """Negative log-likelihoods by transformers over the text in pieces of `length` tokens, and the number of pieces."""
    model = whole_model(folder)
    ids = AutoTokenizer.from_pretrained(folder)(text.read_text())["input_ids"]
    pieces = [ids[first : first + length] for first in range(0, len(ids), length)]
    losses: list[float] = []
    for piece in pieces:
        scores = torch.log_softmax(model(torch.tensor([piece])).logits[0].double(), -1)
        losses += [-float(scores[place, token]) for place, token in enumerate(piece[1:])]
    return losses, len(pieces)


@pytest.mark.parametrize(("kind", "length"), [("tiny_m2", LENGTH), ("tiny_m2", 4096), ("bf16_copy", LENGTH)])
def test_it_is_the_whole_models(cli: Cli, request: pytest.FixtureRequest, text: Path, kind: str, length: int) -> None:
    folder = request.getfixturevalue(kind)
    result = cli("perplexity", folder, "--text", text, "--sequence-length", length, "--json")
    assert result.code == 0, result.err
    found = result.json()
    losses, pieces = expected(folder, text, length)
    assert found.keys() == KEYS
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    deviation = torch.tensor(losses).std(correction=0).item() / math.sqrt(len(losses))
    assert found["standard_error"] == pytest.approx(found["perplexity"] * deviation, rel=1e-3)
    assert (found["scored_tokens"], found["documents"]) == (len(losses), pieces)
    assert found["tokens"] == len(losses) + pieces
    assert (found["precision"], found["sequence_length"]) == ("float32", length)


def test_terminal(cli: Cli, tiny_m2: Path, text: Path) -> None:
    numbers = cli("perplexity", tiny_m2, "--text", text, "--json").json()
    result = cli("perplexity", tiny_m2, "--text", text)
    first, second = result.out.splitlines()
    scored = f"{numbers['scored_tokens']:,}"
    assert first == f"perplexity {numbers['perplexity']:.4f} ± {numbers['standard_error']:.4f} over {scored} tokens"
    assert second.startswith(f"{numbers['documents']} pieces of up to 512 tokens, float32, ")


def test_bfloat16_is_near(cli: Cli, tiny_m2: Path, text: Path) -> None:
    exact, near = (
        cli("perplexity", tiny_m2, "--text", text, "--json", "--precision", precision).json()
        for precision in ("float32", "bfloat16")
    )
    assert near["precision"] == "bfloat16"
    assert exact["perplexity"] != near["perplexity"]
    assert near["perplexity"] == pytest.approx(exact["perplexity"], rel=0.02)


def test_rows_of_texts_are_pieces_of_their_own(cli: Cli, tiny_m2: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in ("def f(x):", "x", "return x + 1")))
    found = cli("perplexity", tiny_m2, "--text", path, "--json").json()
    assert found["documents"] == 3
    assert found["scored_tokens"] == found["tokens"] - 3


def test_chats_are_rendered(cli: Cli, tiny_m2: Path, tmp_path: Path) -> None:
    path = tmp_path / "dialogues.jsonl"
    path.write_text("".join((tiny_m2 / "heldout" / "dialogues.jsonl").read_text().splitlines(keepends=True)[:8]))
    found = cli("perplexity", tiny_m2, "--text", path, "--sequence-length", "2048", "--json").json()
    assert found["perplexity"] < 2  # what the fixture was trained on; code has 46


def test_it_leaves_nothing_behind(
    cli: Cli, tiny_m2: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli("perplexity", tiny_m2, "--text", text).code == 0
    assert list(tmp_path.iterdir()) == []


# Refusals


def test_no_text(cli: Cli, tiny_m2: Path, text: Path) -> None:
    assert "--text FILE" in refusal(cli("perplexity", tiny_m2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sequence-length", "4097"), ["4097", "4096"]),
        (("--sequence-length", "1"), ["--sequence-length"]),
        (("--sequence-length", "0"), ["--sequence-length"]),
        (("--device", "tpu"), ["--device", "cpu or cuda"]),
        (("--precision", "half"), ["--precision", "half"]),
        (("--memory", "200M"), ["--memory", "needs", "MB"]),
        (("--memory", "x"), ["--memory"]),
    ],
    ids=str,
)
def test_options(cli: Cli, tiny_m2: Path, text: Path, options: tuple[str, ...], words: list[str]) -> None:
    line = refusal(cli("perplexity", tiny_m2, "--text", text, *options))
    for word in words:
        assert word in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_a_device(cli: Cli, tiny_m2: Path, text: Path) -> None:
    assert "no CUDA device" in refusal(cli("perplexity", tiny_m2, "--text", text, "--device", "cuda"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.txt", b""), ("t.jsonl", b""), ("t.txt", b"x"), ("t.txt", b"\xff\xff"), ("t.jsonl", b"{"), ("t.md", b"a b")],
)
def test_texts_that_cannot_be_scored(cli: Cli, tiny_m2: Path, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    line = refusal(cli("perplexity", tiny_m2, "--text", tmp_path / name))
    assert name in line or "fewer than two tokens" in line


def test_absent_text(cli: Cli, tiny_m2: Path, tmp_path: Path) -> None:
    assert "absent.txt" in refusal(cli("perplexity", tiny_m2, "--text", tmp_path / "absent.txt"))
    assert str(tmp_path) in refusal(cli("perplexity", tiny_m2, "--text", tmp_path))


def test_the_name_of_a_corpus_is_no_text(cli: Cli, tiny_m2: Path) -> None:
    assert "smoke: no such file" in refusal(cli("perplexity", tiny_m2, "--text", "smoke"))


def test_source_that_is_no_checkpoint(cli: Cli, text: Path, tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(cli("perplexity", tmp_path, "--text", text))


def test_tokenizer_of_another_model(
    cli: Cli, small_checkpoint: Path, tiny_m2: Path, text: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))
    shutil.copyfile(tiny_m2 / "tokenizer.json", source / "tokenizer.json")
    assert "different models" in refusal(cli("perplexity", source, "--text", text))


def test_logits_that_are_not_finite(cli: Cli, damaged: Damage, tmp_path: Path) -> None:
    """Finite weights of the output whose products are not."""
    name = "lm_head.weight"
    before = load_file(damaged.shard_of(name))[name]
    damaged.replace(name, torch.full_like(before, 3e38))
    path = tmp_path / "text.txt"
    path.write_text("the expert of a layer is the unit of work")
    result = cli("perplexity", damaged.folder, "--text", path, "--json")
    assert result.code == 1, result.out
    assert result.out == ""
    assert "finite" in result.err
    assert len(result.error_lines) == 1
