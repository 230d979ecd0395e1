"""A whole streamed pass, from the file or folder of a model to the states behind its last layer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quantkit.forward.documents import Documents
from quantkit.forward.embedding import embed
from quantkit.forward.open_weights import open_tensors
from quantkit.forward.precision import find_device, find_dtype
from quantkit.forward.streamed import StreamedForward, plan_room
from quantkit.forward.weights import ModelWeights
from quantkit.model.spec import HParams
from quantkit.run.progress import WeightProgress
from quantkit.run.sizes import available_threads, memory_budget


@contextmanager
def streamed_pass(
    path: Path,
    documents_for: Callable[[HParams], Documents],
    *,
    device: str,
    precision: str,
    memory: int | None,
    beside: Callable[[HParams, Documents], int] = lambda hparams, documents: 0,
) -> Iterator[StreamedForward]:
    """Open the model at `path` for a pass over the documents that `documents_for` its dimensions gives.

    `beside` says how many bytes the caller will hold. Raises BadInput for a model that cannot be read, and when
    `memory`, for the whole process in bytes, does not hold one worker.
    """
    stored = open_tensors(path)
    where = find_device(device)
    documents = documents_for(stored.hparams)
    dtype = find_dtype(precision, stored.hparams, documents.tokens, where)
    budget = memory_budget(memory) - beside(stored.hparams, documents)
    room = plan_room(stored.hparams, documents, dtype, available_threads(), budget)
    with (
        tempfile.TemporaryDirectory(prefix="quantkit-") as scratch,
        ModelWeights(stored, dtype, where) as weights,
        StreamedForward(weights, documents, room, Path(scratch)) as forward,
    ):
        yield forward


def run_layers(forward: StreamedForward, label: str, *, quiet: bool) -> None:
    """Embed the documents and run all layers; NothingFinite ends it where no token's state is finite any more."""
    h = forward.weights.hparams
    per_expert = 3 * h.hidden * h.expert_width
    embed(forward.weights, forward.documents, forward.states.residual, forward.room.workers)
    with WeightProgress(label, h.n_layers * h.n_experts * per_expert, 0, quiet=quiet) as progress:
        for layer in range(h.n_layers):
            forward.layer(layer, advance=lambda expert: progress.advance(per_expert, per_expert))
