"""The pass over a model's layers, in bounded memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from quantkit.errors import BadInput, QuantkitError
from quantkit.forward.attention import attention_half, attention_inputs, attention_outputs
from quantkit.forward.decoder import AttentionHalf, rotary_embedding
from quantkit.forward.documents import BATCH_TOKENS, Documents, batches
from quantkit.forward.experts import EXPERT_ROWS, Rebuild, expert_half
from quantkit.forward.ordered import PARKED_PER_THREAD
from quantkit.forward.routing import LayerRouting
from quantkit.forward.states import HiddenStates
from quantkit.forward.statistics import Ride, Site, Statistic
from quantkit.forward.stored import FIRST_PLACES, LAST_PLACES, layer_places
from quantkit.forward.tokens import TokenStates
from quantkit.forward.weights import ModelWeights
from quantkit.model.spec import HParams
from quantkit.quantize.hessian import Gram

# What a thread's heap may hold beyond what is in use, bytes.
SPARE = 2**26
# Options of glibc's mallopt, (number, bytes): buffers up to 32 MiB, its limit, come from heaps that do not shrink.
KEEP_FREED_MEMORY = {"M_MMAP_THRESHOLD": (-3, 2**25), "M_TRIM_THRESHOLD": (-1, SPARE), "M_TOP_PAD": (-2, SPARE // 4)}


class NothingFinite(QuantkitError):
    """No token's state is left: all became NaN or infinite."""


@dataclass(frozen=True)
class Room:
    """How a pass uses its memory: so many workers, and hidden states in memory or in files."""

    workers: int
    states_in_memory: bool


def plan_room(
    hparams: HParams, documents: Documents, dtype: torch.dtype, threads: int, budget: int, solver: int = 0
) -> Room:
    """Divide `budget` bytes (the process itself not counted) between hidden states and workers.

    `solver` bytes are what a worker needs beside the pass.

    Workers come first: without memory for the states these go to disk, where the system's cache still helps. Raises
    BadInput when not even one worker fits.
    """
    worker, shared = solver + _worker_bytes(hparams, documents, dtype), _layer_bytes(hparams, documents, dtype)
    if worker + shared > budget:
        more = (worker + shared - budget) // 10**6 + 1
        raise BadInput(
            f"--memory: one worker on documents of up to {_longest(documents)} tokens needs "
            f"{(worker + shared) / 1e6:.0f} MB beside the program; give {more} MB more, or a smaller --sequence-length"
        )
    states = documents.tokens * hparams.hidden * (4 + dtype.itemsize)
    for workers in range(threads, 0, -1):
        if workers * worker + shared + states <= budget:
            return Room(workers, states_in_memory=True)
    return Room(min(threads, (budget - shared) // worker), states_in_memory=False)


def _longest(documents: Documents) -> int:
    return int((documents.starts[1:] - documents.starts[:-1]).max())


def _layer_bytes(hparams: HParams, documents: Documents, dtype: torch.dtype) -> int:
    """What is there once: the attention matrices, the routing, and a part of the vocabulary."""
    attention = 2 * hparams.hidden * (hparams.n_heads + hparams.n_kv_heads) * hparams.head_dim * dtype.itemsize
    routing = documents.tokens * hparams.n_experts_used * 32
    return attention + routing + 150_000_000


def _worker_bytes(hparams: HParams, documents: Documents, dtype: torch.dtype) -> int:
    """What one worker holds: a batch in attention, or an expert with its rows and a finished result."""
    tokens = max(BATCH_TOKENS, _longest(documents))
    heads = (hparams.n_heads + 2 * hparams.n_kv_heads) * hparams.head_dim
    in_attention = tokens * (hparams.hidden * (8 + 2 * dtype.itemsize) + 3 * heads * 4 + hparams.n_experts * 12)
    rows = min(EXPERT_ROWS, documents.tokens)
    in_expert = rows * ((2 + PARKED_PER_THREAD) * hparams.hidden + 4 * hparams.expert_width) * dtype.itemsize
    in_expert += hparams.hidden * hparams.expert_width * (3 * dtype.itemsize + 5)
    return max(in_attention, in_expert) + 2 * SPARE


def keep_freed_memory() -> None:
    """Ask the C library not to give freed buffers back to the system: fresh pages cost a tenth of a pass."""
    with suppress(OSError, AttributeError):  # only glibc has it
        mallopt = ctypes.CDLL(None).mallopt
        for number, nbytes in KEEP_FREED_MEMORY.values():
            mallopt(number, nbytes)


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Workers are the threads; matrix products inside of them take one each, which also fixes their results."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class StreamedForward:
    """Runs the layers over all documents, one after the other; hidden states survive between calls."""

    def __init__(self, weights: ModelWeights, documents: Documents, room: Room, scratch: Path) -> None:
        """Hidden states that do not fit into memory go to nameless files in the folder `scratch`."""
        self.weights = weights
        self.documents = documents
        self.room = room
        self._batches = list(batches(documents))
        folder = None if room.states_in_memory else scratch
        shape = (documents.tokens, weights.hparams.hidden)
        self.states = TokenStates(
            HiddenStates(*shape, torch.float32, weights.device, folder),
            HiddenStates(*shape, weights.dtype, weights.device, folder),
        )
        self._rotary = rotary_embedding(weights.hparams, weights.device)
        self._expected = False
        keep_freed_memory()

    def __enter__(self) -> StreamedForward:
        return self

    def __exit__(self, *error: object) -> None:
        self.states.__exit__(None, None, None)

    def layer(
        self,
        number: int,
        statistics: tuple[Statistic, ...] = (),
        floor: int = 0,
        advance: Callable[[int], None] = lambda expert: None,
        rebuild: Rebuild | None = None,
    ) -> LayerRouting:
        """Run layer `number`; every expert shows the statistics at least `floor` tokens. Returns who went where.

        With `rebuild` the experts' weights are replaced before they are used.
        """
        hparams = self.weights.hparams
        ride = Ride(statistics)
        self._expect_from(number)
        with single_threaded_torch():
            routing = LayerRouting(
                self.documents.tokens, hparams.n_experts_used, hparams.n_experts, floor, self.weights.device
            )
            half = self.weights.attention_half(number)
            if rebuild is not None and rebuild.wants_attention:
                grams = self._attention_grams(half)
                half = self.weights.attention_half(number, rebuild.attention(grams))
            attention_half(half, self._rotary, self.states, self._batches, routing, ride, number, self.room.workers)
            del half
            expert_half(self.weights, self.states, routing, ride, number, self.room.workers, advance, rebuild)
        if not self.states.alive.any():
            raise NothingFinite(
                f"{self.weights.path}: layer {number}: the state of every token became NaN or infinite; "
                "repeat with --precision float32, and check the checkpoint if that fails as well"
            )
        # The embedding's rows may be asked for again until the first layer is through.
        self.weights.stored.release([*FIRST_PLACES, *layer_places(number)])
        return routing

    def _expect_from(self, number: int) -> None:
        """The first time, say that all layers from this one on will be wanted, and what is behind them."""
        if self._expected:
            return
        self._expected = True
        later = [place for layer in range(number, self.weights.hparams.n_layers) for place in layer_places(layer)]
        self.weights.stored.expect([*later, *LAST_PLACES])

    def attention_outputs(self, halves: Sequence[AttentionHalf], take: Callable[[list[torch.Tensor]], None]) -> None:
        """Show `take` what other attention `halves` would add to the present states, batch by batch."""
        with single_threaded_torch():
            attention_outputs(halves, self._rotary, self.states, self._batches, take, self.room.workers)

    def _attention_grams(self, half: AttentionHalf) -> dict[Site, Gram]:
        grams = {Site.ATTENTION_INPUT: Gram(), Site.ATTENTION_OUTPUT: Gram()}
        attention_inputs(
            half,
            self._rotary,
            self.states,
            self._batches,
            lambda site, rows: grams[site].add(rows),
            self.room.workers,
        )
        return grams
