"""What is known of a model on disk before anything runs: what kind of file it is, its dimensions, its fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from quantkit.checkpoint.shards import LocalShards, ShardFiles
from quantkit.errors import BadInput

# Files up to this size enter the fingerprint whole; of larger ones samples do.
WHOLE_FILE = 2**28
SAMPLES, SAMPLE_BYTES = 64, 2**20
METHODS = {"fp8": "FP8 checkpoint", "awq": "AWQ checkpoint", "gptq": "GPTQ checkpoint"}
METHODS |= {"compressed-tensors": "compressed-tensors checkpoint", "": "BF16 checkpoint"}
# Dimensions that a quantized model shares with its original.
DIMENSIONS = ("n_layers", "hidden", "n_experts", "vocab")


@dataclass(frozen=True)
class ModelFacts:
    """A checkpoint folder or a GGUF; JSON-able, for captures and reports."""

    name: str
    kind: str
    is_gguf: bool
    dimensions: dict[str, int]
    context: int
    bytes: int
    weights: int
    config_sha256: str
    weights_fingerprint: str
    tokenizer_sha256: str | None
    template_sha256: str | None

    def as_json(self) -> dict[str, Any]:
        """For a capture's identity and the report."""
        bits = round(self.bytes * 8 / self.weights, 3) if self.weights else None
        return asdict(self) | {"bits_per_weight": bits}


def served_elsewhere(name: str) -> ModelFacts:
    """All that is known of a model without files here: its name."""
    return ModelFacts(name, "served elsewhere", False, {}, 0, 0, 0, "", "", None, None)


def describe_model(path: Path) -> ModelFacts:
    """Facts of the checkpoint folder or GGUF at `path`. Raises BadInput for anything else, or for damage."""
    if path.is_dir():
        return _describe_folder(path)
    if path.is_file():
        return _describe_gguf(path)
    raise BadInput(f"{path}: no such file or folder; give a checkpoint's folder or a GGUF")


def check_same_model(reference: dict[str, int], quantized: ModelFacts, named: str) -> None:
    """Raise BadInput naming `named`, the reference, when its dimensions are not those of the quantized model."""
    for key in quantized.dimensions.keys() & reference.keys():
        if reference[key] != quantized.dimensions[key]:
            raise BadInput(
                f"{named}: is of another model than {quantized.name}: {key} is {reference[key]} there, "
                f"{quantized.dimensions[key]} here; give the original of this model"
            )


def _describe_folder(folder: Path) -> ModelFacts:
    from quantkit.calibration.corpora.render import TOKENIZER_FILES, load_tokenizer
    from quantkit.checkpoint.index import open_checkpoint
    from quantkit.model.config import hparams_from_config

    checkpoint = open_checkpoint(folder)
    hparams = hparams_from_config(checkpoint.config, folder / "config.json")
    settings = checkpoint.config.get("quantization_config") or {}
    method = str(settings.get("quant_method", "")) if isinstance(settings, dict) else ""
    tokenizer = load_tokenizer(folder) if (folder / TOKENIZER_FILES[0]).is_file() else None
    h = hparams
    attention = 2 * h.hidden * (h.n_heads + h.n_kv_heads) * h.head_dim
    experts = 3 * h.n_experts * h.hidden * h.expert_width
    return ModelFacts(
        name=folder.resolve().name,
        kind=METHODS.get(method, f"{method} checkpoint"),
        is_gguf=False,
        dimensions={key: getattr(hparams, key) for key in DIMENSIONS},
        context=hparams.context,
        bytes=checkpoint.shard_bytes(),
        weights=h.n_layers * (attention + experts) + 2 * h.vocab * h.hidden,
        config_sha256=hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
        weights_fingerprint=_fingerprint(
            [checkpoint.shard_name(shard) for shard in checkpoint.shards], checkpoint.files
        ),
        tokenizer_sha256=tokenizer.sha256 if tokenizer else None,
        template_sha256=tokenizer.template_sha256 if tokenizer else None,
    )


def _describe_gguf(path: Path) -> ModelFacts:
    from quantkit.formats.gguf.read import read_gguf
    from quantkit.model.minimax_m2 import GGUF_ARCHITECTURE

    contents = read_gguf(path)
    keys, shapes = contents.keys, {tensor.name: tensor.shape for tensor in contents.tensors}
    if keys.get("general.architecture") != GGUF_ARCHITECTURE or "token_embd.weight" not in shapes:
        raise BadInput(
            f"{path}: architecture {keys.get('general.architecture')} is not {GGUF_ARCHITECTURE}; not a MiniMax-M2 GGUF"
        )
    vocab, hidden = shapes["token_embd.weight"]
    dimensions = {
        "n_layers": int(keys[f"{GGUF_ARCHITECTURE}.block_count"]),
        "hidden": hidden,
        "n_experts": int(keys[f"{GGUF_ARCHITECTURE}.expert_count"]),
        "vocab": vocab,
    }
    types = {tensor.type for tensor in contents.tensors if "_exps" in tensor.name}
    template = keys.get("tokenizer.chat_template")
    return ModelFacts(
        name=path.name,
        kind=f"GGUF, experts {', '.join(sorted(types))}",
        is_gguf=True,
        dimensions=dimensions,
        context=int(keys.get(f"{GGUF_ARCHITECTURE}.context_length", 0)),
        bytes=sum(part.stat().st_size for part in contents.parts),
        weights=sum(_count(shape) for name, shape in shapes.items() if len(shape) > 1),
        config_sha256=hashlib.sha256(repr(sorted(keys.items())).encode()).hexdigest(),
        weights_fingerprint=_fingerprint([part.name for part in contents.parts], LocalShards(path.parent)),
        tokenizer_sha256=None,
        template_sha256=hashlib.sha256(template.encode()).hexdigest() if template else None,
    )


def _count(shape: Sequence[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _fingerprint(names: Sequence[str], shards: ShardFiles) -> str:
    """SHA-256 over names, sizes and bytes of the files: all bytes of small ones, samples all over large ones."""
    digest = hashlib.sha256()
    for name in names:
        size = shards.size(name)
        digest.update(f"{PurePosixPath(name).name} {size}".encode())
        if size <= WHOLE_FILE:
            whole = hashlib.sha256()
            for first in range(0, size, SAMPLE_BYTES):
                whole.update(_bytes_at(shards, name, first, min(SAMPLE_BYTES, size - first)))
            digest.update(whole.digest())
            continue
        for number in range(SAMPLES):
            place = (size - SAMPLE_BYTES) * number // (SAMPLES - 1)
            digest.update(_bytes_at(shards, name, place, SAMPLE_BYTES))
    return digest.hexdigest()


def _bytes_at(shards: ShardFiles, shard: str, offset: int, count: int) -> bytearray:
    """Bytes of a shard, fewer where it ends early."""
    buffer = bytearray(count)
    done = 0
    while done < count:
        got = shards.read_into(shard, memoryview(buffer)[done:], offset + done)
        if not got:
            break
        done += got
    return buffer[:done]
