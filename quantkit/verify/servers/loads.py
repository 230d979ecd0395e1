"""What a path holds, and which runtime loads that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkpoint.index import read_json
from quantkit.errors import BadInput
from quantkit.verify.servers.llama_cpp import gguf_parts
from quantkit.verify.servers.runtimes import KTRANSFORMERS, LLAMA_CPP, OLLAMA, SGLANG, VLLM

GGUF, BF16, FP8, AWQ, GPTQ = "GGUF", "BF16", "FP8", "AWQ", "GPTQ"
PACKED, PACKED_FP8 = "compressed-tensors", "compressed-tensors with FP8 attention"
# quant_method of config.json -> what it is called here.
_METHODS = {"fp8": FP8, "awq": AWQ, "gptq": GPTQ, "compressed-tensors": PACKED}

_NEEDS_GGUF = "loads GGUF files only; write one from the original checkpoint with `quantkit gguf q4_k_m`"
_NEEDS_FOLDER = (
    "does not load GGUF files of MiniMax-M2; serve it with --engine llama.cpp, or write a checkpoint for {engine} "
    "with `quantkit gptq` or `quantkit awq`"
)
_NEEDS_ORIGINAL = "reads the FP8 or BF16 original, or a GGUF; give one of these, or --engine vllm"
_FOLDERS = (BF16, FP8, AWQ, GPTQ, PACKED, PACKED_FP8)

# (runtime, kind) -> why not, and what to do. What is not here is loaded.
REFUSED: dict[tuple[str, str], str] = {
    **{(engine, GGUF): _NEEDS_FOLDER.format(engine=engine) for engine in (VLLM, SGLANG)},
    **{(engine, kind): _NEEDS_GGUF for engine in (LLAMA_CPP, OLLAMA) for kind in _FOLDERS},
    **{(KTRANSFORMERS, kind): _NEEDS_ORIGINAL for kind in (AWQ, GPTQ, PACKED, PACKED_FP8)},
}
# What should work by its documents and was not tried.
UNTRIED = {(SGLANG, PACKED_FP8), (KTRANSFORMERS, BF16), (KTRANSFORMERS, GGUF)}


@dataclass(frozen=True)
class Served:
    """A model on disk: the path to give to a runtime, its kind, all its weight files and their bytes."""

    path: Path
    kind: str
    files: tuple[Path, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, as they are in a GPU's memory."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def name(self) -> str:
        """What clients call the model."""
        if self.kind != GGUF:
            return self.path.resolve().name
        return self.path.stem.removesuffix(f"-00001-of-{len(self.files):05d}")


def look_at(path: Path) -> Served:
    """Return what `path` holds: a checkpoint's folder, or a GGUF (any part). Raises BadInput for anything else."""
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder; give a checkpoint's folder or a GGUF")
    if path.is_file():
        parts = gguf_parts(path)
        with parts[0].open("rb") as file:
            if file.read(4) != b"GGUF":
                raise BadInput(f"{path}: not a GGUF; give a GGUF, or the folder of a checkpoint")
        return Served(parts[0], GGUF, parts)
    if not (path / "config.json").is_file() and (ggufs := sorted(path.glob("*.gguf"))):
        raise BadInput(f"{path}: a folder of GGUF files; give one of them, such as {ggufs[0]}")
    config = read_json(path / "config.json", "give a checkpoint's folder or a GGUF")
    files = tuple(sorted(path.glob("*.safetensors")))
    if not files:
        raise BadInput(f"{path}: no .safetensors files there; download the checkpoint again")
    return Served(path, _kind(config, path), files)


def check_loads(engine: str, served: Served) -> None:
    """Raise BadInput with the remedy where the runtime does not load such files."""
    why = REFUSED.get((engine, served.kind))
    if why is not None:
        raise BadInput(f"{served.path}: {served.kind}, but {engine} {why}")


def _kind(config: dict[str, Any], folder: Path) -> str:
    quantization = config.get("quantization_config")
    if quantization is None:
        return BF16
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method not in _METHODS:
        raise BadInput(
            f"{folder / 'config.json'}: quantized with {method!r}, which no runtime here loads; "
            f"known are {', '.join(_METHODS)}"
        )
    return PACKED_FP8 if quantization.get("format") == "mixed-precision" else _METHODS[method]
