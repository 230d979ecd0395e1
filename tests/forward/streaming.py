"""The type of the factory that tests of the streamed forward get."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from quantkit.forward.documents import Documents
from quantkit.forward.streamed import StreamedForward


class Streaming(Protocol):
    """Runs all layers of the fixture over documents; the states stay open inside of the `with`."""

    def __call__(
        self,
        documents: Documents,
        *,
        dtype: torch.dtype = torch.float32,
        workers: int = 2,
        in_memory: bool = True,
        **layer_arguments: Any,
    ) -> AbstractContextManager[StreamedForward]: ...
