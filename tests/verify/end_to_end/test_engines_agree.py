"""One quantized model on vLLM, llama.cpp and in the streamed pass: the figures do not depend on where it runs.

Its integers are dequantized by somebody else's reader and stored in BF16, which all three take as they are.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import Cli
from integer_reference import float32_copy
from safetensors.torch import load_file, save_file

PERPLEXITY = 0.01  # relative
RELATIVE, ABSOLUTE = 0.1, 0.002  # of the mean KLD
CHARACTERS = 2200


TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def in_bfloat16(folder: Path, original: Path) -> Path:
    """Round the float32 weights of a checkpoint to BF16, in place, and give it the original's tokenizer."""
    for name in TOKENIZER:
        shutil.copyfile(original / name, folder / name)
    for shard in folder.glob("*.safetensors"):
        weights = load_file(shard)
        rounded = {name: one if "e_score" in name else one.bfloat16() for name, one in weights.items()}
        save_file(rounded, shard, metadata={"format": "pt"})
    return folder


@pytest.mark.full
def test_engines_agree(tiny_m2: Path, cli: Cli, tmp_path: Path) -> None:
    def run(*arguments: object) -> Any:
        done = cli(*arguments)
        assert done.code in (0, 3, 4), done.err
        return done

    texts: list[object] = []
    for name in ("code", "docs"):
        path = tmp_path / f"{name}.txt"
        path.write_text((tiny_m2 / "heldout" / f"text_{name}.txt").read_text()[:CHARACTERS])
        texts += ["--text", path]
    run("rtn", tiny_m2, "-o", tmp_path / "rtn", "--format", "gptq")
    model = in_bfloat16(float32_copy(tmp_path / "rtn", tmp_path / "bf16"), tiny_m2)
    run("gguf", "bf16", model, "-o", tmp_path / "bf16.gguf")
    reference = tmp_path / "fp8.capture"
    run("verify", "capture", tiny_m2, "-o", reference, "--engine", "streamed", *texts)
    figures = {}
    for engine, path in (("streamed", model), ("vllm", model), ("llama.cpp", tmp_path / "bf16.gguf")):
        folder = tmp_path / engine
        report = run("verify", path, "--reference", reference, "--engine", engine, "-o", folder, "--json").json()
        figures[engine] = report["metrics"]["ppl"]["quantized"], report["metrics"]["kld"]["mean"]
    print(figures)
    perplexity, divergence = figures["streamed"]
    for engine in ("vllm", "llama.cpp"):
        assert figures[engine][0] == pytest.approx(perplexity, rel=PERPLEXITY)
        assert figures[engine][1] == pytest.approx(divergence, rel=RELATIVE, abs=ABSOLUTE)
