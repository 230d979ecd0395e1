"""Files of token ids that tests make up."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def saved(path: Path, ids: np.ndarray, starts: np.ndarray | None = None) -> Path:
    tensors = {"ids": ids.astype(np.int32)} | ({} if starts is None else {"starts": starts.astype(np.int64)})
    save_file(tensors, path)
    return path
