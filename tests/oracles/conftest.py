"""What other people's programs make of the fixture checkpoint."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from reference_programs import CHECKPOINT, ROOT, run_program
from safetensors.torch import load_file, save_file


def _convert(out: Path, float_type: str) -> Path:
    script = ROOT / "scripts" / "convert_reference.py"
    run_program(sys.executable, script, CHECKPOINT, "--outfile", out, "--outtype", float_type)
    return out


def _dequantize(weight: torch.Tensor, scale: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """FP8 `weight` [out, in] times `scale` [out/rows, in/columns], rounded to BF16; blocks may be cut at the edges."""
    spread = scale.float().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return (weight.float() * spread[: weight.shape[0], : weight.shape[1]]).to(torch.bfloat16)


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture checkpoint as convert_hf_to_gguf.py writes it in BF16, the usual input of llama-quantize."""
    return _convert(tmp_path_factory.mktemp("converter") / "bf16.gguf", "bf16")


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture checkpoint as convert_hf_to_gguf.py writes it in F32: the products of FP8 values and block scales."""
    return _convert(tmp_path_factory.mktemp("converter") / "f32.gguf", "f32")


@pytest.fixture(scope="session")
def bf16_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture checkpoint as a BF16 checkpoint: its FP8 weights dequantized by torch and rounded."""
    folder = tmp_path_factory.mktemp("bf16-checkpoint")
    config = json.loads((CHECKPOINT / "config.json").read_text())
    rows, columns = config.pop("quantization_config")["weight_block_size"]
    for path in CHECKPOINT.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name != "model.safetensors.index.json":
            shutil.copyfile(path, folder / path.name)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for path in CHECKPOINT.glob("*.safetensors"):
        tensors |= load_file(path)
    weights = {}
    for name, weight in tensors.items():
        if name.endswith("_scale_inv"):
            continue
        scale = tensors.get(f"{name}_scale_inv")
        weights[name] = weight if scale is None else _dequantize(weight, scale, rows, columns)
    shard = "model-00001-of-00001.safetensors"
    save_file(weights, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
