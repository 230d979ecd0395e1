"""An INT4 run that stopped goes on at the layer that was not finished, and no folder has its name before it is whole."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import Cli, MakeCheckpoint
from int4_runs import LAYERS, METHODS, SIZE, Case, contents, left, token_set
from safetensors.numpy import save_file

from quantkit.calibration.layer_store import LayerStore
from quantkit.errors import BadInput
from quantkit.forward.streamed import Room
from quantkit.run.int4 import folder, passes, quantize

SIDECARS = 4
CalibrateAnd = Callable[..., dict[str, bytes]]


class Stop(Exception):
    """Raised in the middle of a run."""


@pytest.fixture(scope="module")
def source(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "checkpoint", **SIZE)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> CalibrateAnd:
    """What a run leaves that nobody disturbed, made once for every method and options."""

    @functools.cache
    def made(method: str, **options: Any) -> dict[str, bytes]:
        case = Case(source, tmp_path_factory.mktemp("undisturbed") / "M", method)
        assert case.run(**options).resumed_layers == 0
        assert left(case.out.parent) == ["M"]
        return contents(case.out)

    return made


@pytest.fixture
def case(source: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Case:
    """A run of the method that the test is given, else of GPTQ."""
    (tmp_path / "out").mkdir()
    method = request.node.callspec.params.get("method", "gptq") if hasattr(request.node, "callspec") else "gptq"
    return Case(source, tmp_path / "out" / "M", method)


@contextmanager
def raising(owner: object, name: str, at: int = 0, error: type[BaseException] = Stop) -> Iterator[None]:
    """Let call number `at` of `owner.name` raise instead."""
    function, calls = getattr(owner, name), iter(range(10**9))

    def replaced(*arguments: Any, **options: Any) -> Any:
        if next(calls) == at:
            raise error
        return function(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, replaced)
        yield


def stop_after(case: Case, layers: int, **options: Any) -> None:
    """Run until so many layers are on disk."""
    with raising(LayerStore, "save", layers), pytest.raises(Stop):
        case.run(**options)


# Between two layers


@pytest.mark.parametrize("layers", [0, 1, LAYERS - 1])
@pytest.mark.parametrize("method", METHODS)
def test_goes_on_where_it_was(case: Case, undisturbed: CalibrateAnd, method: str, layers: int) -> None:
    stop_after(case, layers)
    assert left(case.out.parent) == ["M.layers", "M.partial"]
    assert case.run().resumed_layers == layers
    case.matches(undisturbed(method))


@pytest.mark.parametrize("options", [{"then_gptq": True}, {"attention": "int4", "symmetric": True}], ids=str)
@pytest.mark.parametrize("method", ["awq"])
def test_stopped_more_than_once(
    case: Case, undisturbed: CalibrateAnd, method: str, options: dict[str, Any]
) -> None:
    for layers in (1, 0, 2):  # counted from where it was
        stop_after(case, layers, **options)
    assert case.run(**options).resumed_layers == LAYERS - 1
    case.matches(undisturbed(method, **options))


def test_stopped_in_the_middle_of_a_layer(case: Case, undisturbed: CalibrateAnd) -> None:
    """Some of its experts are in the file then, and are written again."""
    with raising(folder.PackedFolder, "write_quantized", 17), pytest.raises(Stop):
        case.run()
    assert case.run().resumed_layers == 1
    case.matches(undisturbed("gptq"))


# Between the last layer and the end


def stopped_while_published(case: Case, owner: object, name: str, at: int, **options: Any) -> None:
    with raising(owner, name, at), pytest.raises(Stop):
        case.run(**options)


MOMENTS = [
    (quantize, "publish_folder", 0),
    (folder, "publish", 0),
    *((folder, "write_aside", at) for at in range(SIDECARS + 2)),
    (folder.os, "replace", LAYERS),
]


@pytest.mark.parametrize(("owner", "name", "at"), MOMENTS, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_stopped_before_the_folder_has_its_name(
    case: Case, undisturbed: CalibrateAnd, method: str, owner: object, name: str, at: int
) -> None:
    stopped_while_published(case, owner, name, at)
    assert left(case.out.parent) == ["M.layers", "M.partial"]
    assert case.run().resumed_layers == LAYERS
    case.matches(undisturbed(method))
