"""Any file or folder that holds a MiniMax-M2: opened for a forward pass."""

from __future__ import annotations

from pathlib import Path

import torch

from quantkit.checkpoint.index import open_checkpoint
from quantkit.errors import BadInput
from quantkit.forward.stored import StoredTensors
from quantkit.forward.stored_checkpoint import CheckpointTensors
from quantkit.forward.stored_gguf import GGUFTensors
from quantkit.forward.stored_int4 import Int4Tensors
from quantkit.forward.weights import ModelWeights
from quantkit.model.tensors import build_model


def open_weights(path: Path, dtype: torch.dtype, device: torch.device) -> ModelWeights:
    """Open the model at `path` to be read in `dtype`, bfloat16 or float32. Errors as `open_tensors`."""
    return ModelWeights(open_tensors(path), dtype, device)


def open_tensors(path: Path) -> StoredTensors:
    """Open a GGUF (of a split one any part), or the folder of an FP8, BF16, AWQ, GPTQ or compressed-tensors checkpoint.

    No weights are read. Raises BadInput naming file and tensor for what is damaged or not read here.
    """
    if path.is_file():
        if path.suffix != ".gguf":
            raise BadInput(f"{path}: neither a .gguf file nor a folder; give the GGUF or the checkpoint's folder")
        return GGUFTensors(path)
    checkpoint = open_checkpoint(path)
    quantization = checkpoint.config.get("quantization_config")
    if quantization is None or (isinstance(quantization, dict) and quantization.get("quant_method") == "fp8"):
        return CheckpointTensors(checkpoint, build_model(checkpoint))
    return Int4Tensors(checkpoint)
