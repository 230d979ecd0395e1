"""Items of a plain conversion on a card: from the disk through pinned memory to it, and packed the same way back.

Every item in flight has memory and a stream of its own. While one is read, others are copied, searched or written, so
that disk, bus and card work at the same time; a row's bytes do not depend on what else is under way.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from quantkit.arrays import Bytes, Float32
from quantkit.checkpoint.header import TensorEntry
from quantkit.checkpoint.reader import FP8, Reader
from quantkit.formats.gguf.types import row_bytes
from quantkit.quantize.kquants.cuda.quantize import TYPES, prepare, quantize
from quantkit.quantize.kquants.cuda.turned import turn, turn_fp8
from quantkit.quantize.rows import F16_MAX, search_importance
from quantkit.run.gguf.items import Item
from quantkit.run.gguf.plan import Plan
from quantkit.run.gguf.quantize_item import quantize_item

# One is read, one is on the card, one is written, and one more for when these do not take equally long.
IN_FLIGHT = 4
WIDER = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

Write = Callable[[Bytes], None]


@dataclass
class _Slot:
    """What an item in flight has for itself: memory of the machine that the card reads and writes, and a stream."""

    device: torch.device
    incoming: torch.Tensor = field(init=False)
    outgoing: torch.Tensor = field(init=False)
    sound: torch.Tensor = field(init=False)
    stream: torch.cuda.Stream | None = field(init=False)

    def __post_init__(self) -> None:
        self.incoming = self.outgoing = self._room(0)
        self.sound = self._room(1).view(torch.bool)
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def grow(self, incoming: int, outgoing: int) -> None:
        """Make room for so many bytes."""
        if len(self.incoming) < incoming:
            self.incoming = self._room(incoming)
        if len(self.outgoing) < outgoing:
            self.outgoing = self._room(outgoing)

    def wait(self) -> None:
        """Until all that was begun on the stream is done."""
        if self.stream is not None:
            self.stream.synchronize()

    def _room(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self.device.type == "cuda")


class CardQuantizer:
    """Quantizes items on `device`, `in_flight` of them at once. Thread-safe.

    Types without a kernel, and items in which the card finds a weight or scale that is not finite or too large, go the
    CPU's way, which says what is wrong.
    """

    def __init__(self, plan: Plan, reader: Reader, device: torch.device, in_flight: int = IN_FLIGHT) -> None:
        self._plan = plan
        self._reader = reader
        self._device = device
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for _ in range(in_flight):
            self._slots.put(_Slot(device))
        # Work is handed to the card by one thread at a time; nobody waits for the card meanwhile.
        self._handing_over = threading.Lock()
        prepare({item.type for item in plan.items}, device)

    def __call__(self, item: Item, write: Write) -> None:
        """Quantize the rows of `item` and give their packed bytes to `write`. Errors as of `quantize_item`."""
        if item.type not in TYPES:
            write(quantize_item(self._plan, self._reader, item))
            return
        with self._slot() as slot:
            packed = self._on_card(item, slot)
            write(packed if packed is not None else quantize_item(self._plan, self._reader, item))

    @contextmanager
    def _slot(self) -> Iterator[_Slot]:
        slot = self._slots.get()
        try:
            yield slot
        finally:
            slot.wait()  # also when reading the next item failed: the memory must not be in use
            self._slots.put(slot)

    def _on_card(self, item: Item, slot: _Slot) -> Bytes | None:
        """The packed bytes of `item` in the slot's memory; None where the card found something that is not sound."""
        entry = self._plan.checkpoint.tensors[item.source]
        count = item.weights // item.row_length
        size = count * row_bytes(item.type, item.row_length)
        slot.grow(self._plan.stored_bytes(item), size)
        stored = self._reader.read_stored(item.source, (item.first, item.last), slot.incoming.numpy())
        scale = self._reader.read_scale(item.scale) if entry.dtype == FP8 and item.scale is not None else None
        found = self._plan.outputs[item.output].importance
        importance = search_importance(
            item.type, found.weights(item.tensor, item.matrix) if found is not None else None
        )
        with self._handing_over, torch.cuda.stream(slot.stream):
            turned = self._turned(slot.incoming[: len(stored)], entry, item, scale)
            weighted = None if importance is None else self._small(importance)
            packed, scales_fit = quantize(turned, item.type, weighted)
            slot.outgoing[:size].copy_(packed.view(-1), non_blocking=True)
            # A NaN is not below anything.
            slot.sound.copy_((turned.abs().amax() <= F16_MAX) & scales_fit, non_blocking=True)
        slot.wait()
        return slot.outgoing[:size].numpy() if bool(slot.sound) else None

    def _turned(self, stored: torch.Tensor, entry: TensorEntry, item: Item, scale: Float32 | None) -> torch.Tensor:
        """The stored bytes of `item` as weights on the card, float32 [K, R]."""
        if scale is not None:
            codes = stored.to(self._device, non_blocking=True).view(-1, item.row_length)
            return turn_fp8(codes, self._small(scale), self._plan.model.block, item.first)
        values = stored.view(WIDER[entry.dtype]).to(self._device, non_blocking=True)
        return turn(values.view(-1, item.row_length))

    def _small(self, numbers: Float32) -> torch.Tensor:
        """A few numbers on the card. They are taken over before this returns, but nobody waits until they are there."""
        return torch.tensor(numbers).to(self._device, non_blocking=True)
