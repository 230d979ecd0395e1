"""What a calibration run leaves on disk after every layer, so that a killed one goes on at the next.

A folder beside the output: `run.json` says which run it belongs to, `layer-0007.safetensors` holds a finished layer's
statistics, `hidden-0007` the residual stream behind it (float32 [T, H]; only the latest is kept, and none for the last
layer). Files are written aside, forced to disk and renamed; a layer counts once its statistics have their name.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from quantkit.errors import BadInput
from quantkit.files import write_aside

if TYPE_CHECKING:
    from quantkit.forward.tokens import TokenStates

CHUNK_ROWS = 4096
LOCK, RUN = "lock", "run.json"
OWN_FILE = re.compile(r"(lock|run\.json|layer-\d+\.safetensors|hidden-\d+)(\.partial)?")
Arrays = dict[str, np.ndarray]


class LayerStore:
    """The folder of one run. Raises BadInput when it belongs to another run, or when that one is still going."""

    def __init__(
        self, folder: Path, layers: int, identity: dict[str, Any], *, restart: bool, with_states: bool = True
    ) -> None:
        """Without `with_states` nothing passes from one layer to the next."""
        self.folder = folder
        self._with_states = with_states
        self._last = layers - 1
        try:
            folder.mkdir(exist_ok=True)
            _refuse_foreign(folder)
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileExistsError:
            raise BadInput(f"{folder}: a file is where the run keeps its layers; remove it") from None
        except OSError as error:
            raise BadInput(f"{folder}: the run cannot keep its layers here ({error.strerror})") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise BadInput(f"{folder}: another run is writing this output; wait for it or stop it") from None
        try:
            self._settle(identity, restart)
        except BaseException:
            os.close(self._lock)
            raise

    def _settle(self, identity: dict[str, Any], restart: bool) -> None:
        path = self.folder / RUN
        earlier: dict[str, Any] | None = None
        if path.exists():
            try:
                read = json.loads(path.read_text())
            except (OSError, ValueError):
                read = None
            earlier = read if isinstance(read, dict) else {}
        if earlier == json.loads(json.dumps(identity)) and not restart:
            return
        if earlier is not None and not restart:
            changed = [key for key, value in identity.items() if earlier.get(key) != value]
            raise BadInput(
                f"{self.folder}: belongs to an unfinished run with other {', '.join(changed) or 'arguments'}; "
                "repeat that command, or start over with --force"
            )
        for file in self.folder.iterdir():
            if file.name != LOCK:
                file.unlink()
        self._replace(path, json.dumps(identity, indent=1).encode())

    def finished(self) -> int:
        """How many layers need not be run again."""
        layer = 0
        while self._layer_path(layer).exists():
            layer += 1
        while self._with_states and 0 < layer <= self._last and not self._hidden_path(layer - 1).exists():
            layer -= 1
        return layer

    def save(self, layer: int, arrays: Arrays, states: TokenStates | None) -> None:
        """Put a finished layer on disk: its statistics `arrays`, and the states behind it unless it is the last."""
        if states is None:
            self._replace(self._layer_path(layer), save(arrays))
            return
        checksum = self._write_hidden(layer, states) if layer < self._last else 0
        excluded = [[*place, count] for place, count in states.excluded.items()]
        about = {"hidden_crc32": str(checksum), "excluded": json.dumps(excluded)}
        arrays = arrays | {"alive": states.alive.cpu().numpy().astype(np.uint8)}
        self._replace(self._layer_path(layer), save(arrays, metadata=about))
        if layer:
            self._hidden_path(layer - 1).unlink(missing_ok=True)

    def load(self, layer: int) -> Arrays:
        """The statistics of a finished layer."""
        with self._open_layer(layer) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def restore(self, layer: int, states: TokenStates) -> None:
        """Bring `states` to where they were behind `layer`; behind the last, only who was excluded.

        Raises BadInput when the file was damaged since.
        """
        import torch

        with self._open_layer(layer) as file:
            about = file.metadata()
            states.alive = torch.from_numpy(file.get_tensor("alive").astype(bool)).to(states.alive.device)
        states.excluded.update({(at, expert): count for at, expert, count in json.loads(about["excluded"])})
        if layer == self._last:
            return
        tokens, width = states.residual.shape
        checksum = 0
        with self._hidden_path(layer).open("rb") as source:
            for rows in torch.split(torch.arange(tokens), CHUNK_ROWS):
                raw = bytearray(source.read(len(rows) * width * 4))
                checksum = zlib.crc32(raw, checksum)
                if len(raw) < len(rows) * width * 4:
                    break
                part = torch.frombuffer(raw, dtype=torch.float32).view(-1, width)
                states.residual.write(rows, part.to(states.residual.device))
        if str(checksum) != about["hidden_crc32"]:
            raise BadInput(f"{self._hidden_path(layer)}: damaged; start over with --force")

    def close(self, *, remove: bool) -> None:
        """Let go of the folder; with `remove` the run is over and the folder goes."""
        try:
            if remove:
                (self.folder / RUN).unlink(missing_ok=True)  # first, as it says that the run goes on
                shutil.rmtree(self.folder)
        finally:
            os.close(self._lock)

    def _write_hidden(self, layer: int, states: TokenStates) -> int:
        import torch

        checksum = 0

        def chunks() -> Iterator[memoryview]:
            nonlocal checksum
            for rows in torch.split(torch.arange(states.residual.shape[0]), CHUNK_ROWS):
                raw = states.residual.read(rows).cpu().numpy().data
                checksum = zlib.crc32(raw, checksum)
                yield raw

        write_aside(self._hidden_path(layer), chunks())
        return checksum

    @staticmethod
    def _replace(path: Path, content: bytes) -> None:
        write_aside(path, [content])

    def _open_layer(self, layer: int) -> Any:
        path = self._layer_path(layer)
        try:
            return safe_open(path, framework="numpy")
        except SafetensorError:
            raise BadInput(f"{path}: damaged; start over with --force") from None

    def _layer_path(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:04}.safetensors"

    def _hidden_path(self, layer: int) -> Path:
        return self.folder / f"hidden-{layer:04}"


def unfinished_run(folder: Path) -> bool:
    """Whether `folder` is that of an earlier run that did not come to its end."""
    return (folder / RUN).is_file()


def _refuse_foreign(folder: Path) -> None:
    foreign = next((file for file in folder.iterdir() if not OWN_FILE.fullmatch(file.name)), None)
    if foreign is not None:
        raise BadInput(f"{foreign}: not of a quantkit run, which would keep its layers in this folder; move it away")
