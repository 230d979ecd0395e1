"""The pass that carries calibration tokens through the layers of a checkpoint while these are quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from quantkit.calibration.layer_store import LayerStore
from quantkit.calibration.tokens import TokenSet
from quantkit.checkpoint.index import Checkpoint
from quantkit.forward.documents import Documents
from quantkit.forward.embedding import embed
from quantkit.forward.precision import find_device, find_dtype
from quantkit.forward.streamed import StreamedForward, plan_room
from quantkit.forward.weights import Weights
from quantkit.model.spec import Model
from quantkit.run.sizes import memory_budget


@contextmanager
def open_forward(
    checkpoint: Checkpoint,
    model: Model,
    tokens: TokenSet,
    *,
    device: str,
    precision: str,
    memory: int | None,
    threads: int,
    solver: int,
    scratch: Path,
) -> Iterator[tuple[Weights, StreamedForward]]:
    """Open the checkpoint for a pass of `tokens`; `solver` bytes are what a worker needs to quantize beside it.

    Hidden states beyond `memory` bytes (of the whole process) go to files in `scratch`. Raises BadInput when device,
    precision or memory cannot do it.
    """
    documents = Documents(tokens.ids, tokens.starts)
    where = find_device(device)
    dtype = find_dtype(precision, model.hparams, documents.tokens, where)
    room = plan_room(model.hparams, documents, dtype, threads, memory_budget(memory), solver)
    with (
        Weights(checkpoint, model, dtype, where) as weights,
        StreamedForward(weights, documents, room, scratch) as forward,
    ):
        yield weights, forward


def bring_to(
    forward: StreamedForward,
    store: LayerStore,
    finished: int,
    served: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Bring the tokens' states to where they enter layer `finished`; the layers before it are in `store`.

    `served` gives the rows of the embedding as they will be in the output, see `embed`.
    """
    if finished:
        store.restore(finished - 1, forward.states)
    elif forward.weights.hparams.n_layers:
        embed(forward.weights, forward.documents, forward.states.residual, forward.room.workers, served)
