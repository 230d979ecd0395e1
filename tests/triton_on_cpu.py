"""Triton's kernels in tests: on a card where there is one, else in Triton's interpreter, which needs none.

Imported before anything that imports Triton: functions are bound to the interpreter, or not, when they are defined.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def card() -> Iterator[torch.device]:
    """Where kernels run.

    The interpreter is made to round a product and a sum once, as cards do; float64 holds the product of two float32.
    """
    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def fma(self: InterpreterBuilder, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        once = np.multiply(x.data, y.data, dtype=np.float64) + z.data
        return TensorHandle(once.astype(z.data.dtype), z.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_fma", fma)
        yield torch.device("cpu")
