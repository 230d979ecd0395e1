"""The streamed forward over the fixture model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from streaming import Streaming

from quantkit.checkpoint.index import open_checkpoint
from quantkit.forward.documents import Documents
from quantkit.forward.embedding import embed
from quantkit.forward.streamed import Room, StreamedForward
from quantkit.forward.weights import Weights
from quantkit.model.tensors import build_model


@pytest.fixture
def streaming(tiny_m2: Path, tmp_path: Path) -> Streaming:
    checkpoint = open_checkpoint(tiny_m2)
    model = build_model(checkpoint)

    @contextmanager
    def run(
        documents: Documents,
        *,
        dtype: torch.dtype = torch.float32,
        workers: int = 2,
        in_memory: bool = True,
        **layer_arguments: Any,
    ) -> Iterator[StreamedForward]:
        room = Room(workers, states_in_memory=in_memory)
        with (
            Weights(checkpoint, model, dtype, torch.device("cpu")) as weights,
            StreamedForward(weights, documents, room, tmp_path) as forward,
        ):
            embed(weights, documents, forward.states.residual)
            for layer in range(model.hparams.n_layers):
                forward.layer(layer, **layer_arguments)
            yield forward

    return run
