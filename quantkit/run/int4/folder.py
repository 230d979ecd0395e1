"""The output folder while it grows: shards with every byte's place known, filled in any order, published at once."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from quantkit.arrays import Bfloat16Bits
from quantkit.calibration.layer_store import unfinished_run
from quantkit.checkpoint.index import INDEX_NAME, Checkpoint
from quantkit.checkpoint.reader import Reader
from quantkit.checkpoint.sidecars import replace_quantization_config, sidecars
from quantkit.errors import BadInput
from quantkit.files import cannot_write, partial_path, write_aside
from quantkit.formats.compressed_tensors import FP8_SUFFIXES
from quantkit.formats.packed import PackedFormat
from quantkit.formats.safetensors import Shard, TensorSpec, index_bytes
from quantkit.formats.scheme import Scheme
from quantkit.model.spec import Model
from quantkit.quantize.integers import Quantized
from quantkit.run.finished import FinishedFiles, is_there
from quantkit.run.int4.contents import Fate, Piece, tensor_specs
from quantkit.run.output import OutputFiles, publish

if TYPE_CHECKING:
    import torch

# Provenance and what the run saw; also the mark by which --force knows a folder as one of ours.
REPORT_NAME = "quantkit.json"
# What an unfinished run has in its folder from the start.
SHARD_NAME = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.partial)?$")
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first weight is read. The shards lie in the partial folder of `out`."""

    out: Path
    checkpoint: Checkpoint
    model: Model
    scheme: Scheme
    packed: PackedFormat
    pieces: list[Piece]
    specs: list[TensorSpec]
    shards: list[Shard]

    def pieces_of(self, stage: int) -> list[Piece]:
        """What belongs to a layer, or to the stages before and behind them: see `Model.stages`."""
        stages = self.model.stages()
        return [piece for piece in self.pieces if stages[piece.tensor.gguf] == stage]

    def sources_of(self, stage: int) -> list[str | None]:
        """The checkpoint's tensors that a stage is made of."""
        return [name for piece in self.pieces_of(stage) for name in (piece.source, piece.scale)]

    def stages(self) -> dict[str, int]:
        """The stage of every tensor that is written."""
        stages = self.model.stages()
        return {
            spec.name: stages[piece.tensor.gguf]
            for piece in self.pieces
            for spec in tensor_specs(piece, self.checkpoint, self.scheme, self.packed)
        }


class PackedFolder:
    """Fills the shards of a plan."""

    def __init__(self, plan: Plan, reader: Reader, finished: FinishedFiles | None = None) -> None:
        """Bytes of an earlier run stay; `finished` takes complete shards."""
        self._plan = plan
        self._reader = reader
        self._dtypes = {spec.name: spec.dtype for spec in plan.specs}
        self._places = {
            name: (number, offset) for number, shard in enumerate(plan.shards) for name, offset in shard.offsets.items()
        }
        try:
            partial_path(plan.out).mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(plan.out, error) from None
        self.files = OutputFiles(plan.shards, finished)

    def __enter__(self) -> PackedFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.files.__exit__(kind, error, trace)

    def write_quantized(self, piece: Piece, quantized: Quantized) -> None:
        """Pack one matrix into its place. Thread-safe, as all writes are."""
        for suffix, array in self._plan.packed.pack(quantized, self._plan.scheme.grid).items():
            self._write(f"{piece.prefix}.{suffix}", array)

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of a tensor that is not packed."""
        import torch

        return cast(torch.dtype, getattr(torch, FLOATS[self._dtypes[name]]))

    def write_tensor(self, name: str, values: torch.Tensor) -> None:
        """Write float32 `values` in the tensor's dtype."""
        import torch

        self._write(name, values.to(self.dtype_of(name)).contiguous().view(torch.uint8).cpu().numpy())

    def write_unquantized(self, piece: Piece) -> None:
        """Widen or copy what is not packed."""
        if piece.fate is Fate.WIDENED:
            wide: Bfloat16Bits = np.empty(piece.tensor.source_shape, np.uint16)
            self._reader.read_bfloat16(piece.source, piece.scale, wide)
            self._write(piece.source, wide)
        elif piece.fate is Fate.COPIED:
            self._copy(piece.source, piece.source)
        elif piece.fate is Fate.FP8:
            assert piece.scale is not None
            self._copy(piece.source, f"{piece.prefix}.{FP8_SUFFIXES['weight']}")
            self._write(f"{piece.prefix}.{FP8_SUFFIXES['weight_scale_inv']}", self._reader.read_scale(piece.scale))

    def _copy(self, source: str, name: str) -> None:
        done = 0
        for part in self._reader.read_bytes(source):
            self._write(name, part, done)
            done += part.nbytes

    def _write(self, name: str, array: Any, begin: int = 0) -> None:
        """Write `array` from byte `begin` of the tensor on."""
        number, offset = self._places[name]
        self.files.write(number, offset + begin, np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def publish_folder(plan: Plan, report: dict[str, Any]) -> None:
    """Add index, configuration, sidecars and report to the shards, and give the folder its name. May be repeated."""
    folder, replaced = partial_path(plan.out), _replaced(plan.out)
    about = _as_bytes(report)
    try:
        # Killed between the folder's last name and the end, a run finds everything done.
        if folder.is_dir() or not _holds_report(plan.out, about):
            refuse_lost_shards(plan, plan.model.hparams.n_layers + 1)
            publish(plan.shards)
            _write_small_files(plan, folder, about)
            if plan.out.is_dir():  # an empty folder, or one of ours that --force replaces, as was checked
                shutil.rmtree(replaced, ignore_errors=True)
                os.replace(plan.out, replaced)
            os.replace(folder, plan.out)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise cannot_write(plan.out, error) from None


def publishing_began(plan: Plan) -> bool:
    """Whether an earlier run had everything and was giving names when it was stopped."""
    return not partial_path(plan.out).is_dir() or any(shard.path.exists() for shard in plan.shards)


def hand_over_folder(plan: Plan, report: dict[str, Any], finished: FinishedFiles) -> None:
    """Give the small files to where the shards went; the folder goes away."""
    folder = partial_path(plan.out)
    try:
        folder.mkdir(exist_ok=True)
        _write_small_files(plan, folder, _as_bytes(report))
    except OSError as error:
        raise cannot_write(plan.out, error) from None
    shards = {partial_path(shard.path) for shard in plan.shards}  # some may still be on their way
    finished.complete(plan.shards, [path for path in sorted(folder.iterdir()) if path not in shards])
    shutil.rmtree(folder)


def _write_small_files(plan: Plan, folder: Path, about: bytes) -> None:
    """Everything but the shards."""
    source = plan.checkpoint.folder
    for path in sidecars(source):
        write_aside(folder / path.name, [path.read_bytes()])
    if len(plan.shards) > 1:
        write_aside(folder / INDEX_NAME, [index_bytes(plan.shards)])
    write_aside(folder / REPORT_NAME, [about])
    with (source / "config.json").open(encoding="utf-8", newline="") as file:
        text = replace_quantization_config(file.read(), plan.packed.quantization_config(plan.scheme))
    write_aside(folder / "config.json", [text.encode()])


def _as_bytes(report: dict[str, Any]) -> bytes:
    return (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode()


def _holds_report(folder: Path, about: bytes) -> bool:
    report = folder / REPORT_NAME
    return report.is_file() and report.read_bytes() == about


def refuse_lost_shards(plan: Plan, resumed: int, finished: FinishedFiles | None = None) -> None:
    """Raise BadInput when a shard that a run of `resumed` layers has filled is not where it was."""
    stages = plan.stages()
    for shard in plan.shards:
        begun = finished is None or any(stages[name] < resumed for name in shard.offsets)
        if begun and not is_there(shard, finished):
            path = partial_path(shard.path)
            raise BadInput(f"{path}: was removed or changed since the run was interrupted; start over with --force")


def store_folder(out: Path) -> Path:
    """Where the layers are that a run has behind it."""
    return out.with_name(out.name + ".layers")


def _replaced(out: Path) -> Path:
    """Where an earlier output is while the new one takes its name."""
    return partial_path(out.with_name(out.name + ".replaced"))


def check_out(out: Path, source: Path, *, force: bool) -> None:
    """Refuse an output folder that cannot be made, that holds something, or that is or holds the source.

    `force` allows to replace a folder that an earlier run of ours has written, and nothing else.
    """
    _check_place(out)
    if out.resolve() == source.resolve() or out.resolve() in source.resolve().parents:
        raise BadInput(f"{out}: is or holds the source; give another name with -o")
    aside = partial_path(out)
    try:
        inside = [path.name for path in aside.iterdir()] if aside.is_dir() else []
    except OSError as error:
        raise BadInput(
            f"{aside}: cannot be read, and the run needs the name ({error.strerror}); move it away"
        ) from None
    # Shards that were pushed are gone, and small files may be all there is.
    ours = any(SHARD_NAME.match(name) for name in inside) or unfinished_run(store_folder(out))
    if inside and not ours:
        raise BadInput(f"{aside}: holds files that quantkit did not write, and the run needs the name; move it away")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / REPORT_NAME).is_file():
        raise BadInput(f"{out}: holds files that quantkit did not write; choose another name or empty it")
    if not force:
        raise BadInput(f"{out}: output exists; choose another name or replace it with --force")


def _check_place(out: Path) -> None:
    """Refuse a name that a folder cannot get by renaming, or that a file has."""
    parent = out.resolve().parent
    if not parent.is_dir():
        raise BadInput(f"{parent}: folder of the output does not exist; create it")
    if not os.access(parent, os.W_OK):
        raise BadInput(f"{parent}: folder of the output is not writable")
    for path in (_replaced(out), partial_path(out), out):
        try:
            taken = path.exists() and not path.is_dir()
        except OSError as error:
            raise BadInput(f"{path}: cannot be a folder's name here ({error.strerror})") from None
        if taken:
            raise BadInput(f"{path}: is a file; give the name of a folder with -o")
    if out.is_symlink():
        raise BadInput(f"{out}: is a link; name the folder itself with -o")
    if os.path.ismount(out):
        raise BadInput(f"{out}: is a mount point, which nothing can be renamed to; name a folder inside it with -o")
