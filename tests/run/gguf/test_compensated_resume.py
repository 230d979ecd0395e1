"""A compensated run that stopped goes on at the layer that was not finished; names appear when everything is there."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from compensated_runs import LAYERS, Case, contents, left, token_set

from quantkit.calibration.layer_store import LayerStore
from quantkit.errors import BadInput
from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf import compensate
from quantkit.run.gguf.convert import write_gguf
from quantkit.run.output import OutputFiles

MIXES = ("q4_k_m", "q2_k")
PARTIALS = ["M-Q2_K.gguf.partial", "M-Q4_K_M.gguf.layers", "M-Q4_K_M.gguf.partial"]


class Stop(Exception):
    """Raised in the middle of a run."""


@pytest.fixture(scope="module")
def undisturbed(layers3: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, bytes]]:
    """What a run leaves that nobody disturbed."""

    @functools.cache
    def made(*mixes: str) -> dict[str, bytes]:
        case = Case(layers3, tmp_path_factory.mktemp("undisturbed"))
        assert case.run(*mixes).resumed_layers == 0
        return contents(case.folder)

    return made


@contextmanager
def raising(owner: object, name: str, at: int = 0, *, after: bool = False) -> Iterator[None]:
    """Let call number `at` of `owner.name` raise, instead or once it is done."""
    function, calls = getattr(owner, name), iter(range(10**9))

    def replaced(*arguments: Any, **options: Any) -> Any:
        now = next(calls) == at
        if now and not after:
            raise Stop
        result = function(*arguments, **options)
        if now:
            raise Stop
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, replaced)
        with pytest.raises(Stop):
            yield


@pytest.mark.parametrize("layers", [0, 1, LAYERS])
def test_goes_on_where_it_was(case: Case, undisturbed: Callable[..., dict[str, bytes]], layers: int) -> None:
    """After the last layer only the output matrix is left."""
    with raising(LayerStore, "save", layers):
        case.run(*MIXES)
    assert left(case.folder) == PARTIALS
    assert case.run(*MIXES).resumed_layers == layers
    assert contents(case.folder) == undisturbed(*MIXES)


def test_stopped_more_than_once(case: Case, undisturbed: Callable[..., dict[str, bytes]]) -> None:
    for layers in (1, 0, 1):  # counted from where it was
        with raising(LayerStore, "save", layers):
            case.run(*MIXES)
    assert case.run(*MIXES).resumed_layers == 2
    assert contents(case.folder) == undisturbed(*MIXES)


def test_stopped_in_the_middle_of_a_layer(case: Case, undisturbed: Callable[..., dict[str, bytes]]) -> None:
    with raising(OutputFiles, "write", 90):
        case.run(*MIXES)
    assert case.run(*MIXES).resumed_layers in range(1, LAYERS)
    assert contents(case.folder) == undisturbed(*MIXES)


MOMENTS = {
    "before the first report": (compensate, "write_report", 0),
    "before the last report": (compensate, "write_report", 1),
    "before the names": (compensate, "publish", 0),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_stopped_at_the_end(case: Case, undisturbed: Callable[..., dict[str, bytes]], moment: str) -> None:
    with raising(*MOMENTS[moment]):
        case.run(*MIXES)
    assert not list(case.folder.glob("*.gguf"))
    assert case.run(*MIXES).resumed_layers == LAYERS
    assert contents(case.folder) == undisturbed(*MIXES)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_stopped_between_the_names(
    case: Case, undisturbed: Callable[..., dict[str, bytes]], number: int, after: bool
) -> None:
    target, rename = case.path(MIXES[number]), os.replace

    def replaced(source: Path, name: Path) -> None:
        if name == target and not after:
            raise Stop
        rename(source, name)
        if name == target:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replaced)
        with pytest.raises(Stop):
            case.run(*MIXES)
    assert len(list(case.folder.glob("*.gguf"))) == number + after
    assert case.run(*MIXES).resumed_layers == LAYERS
    assert contents(case.folder) == undisturbed(*MIXES)


def test_a_file_that_was_lost_at_the_end_is_missed(case: Case) -> None:
    with raising(compensate, "publish"):
        case.run(*MIXES)
    case.path("q2_k").with_name("M-Q2_K.gguf.partial").unlink()
    with pytest.raises(BadInput, match=r"M-Q2_K\.gguf\.partial: was removed.*--force"):
        case.run(*MIXES)


# What does not go on


def stop_after(case: Case, layers: int) -> None:
    with raising(LayerStore, "save", layers):
        case.run(*MIXES)


CHANGES: dict[str, dict[str, Any]] = {
    "tokens": {"tokens": token_set(seed=1)},
    "floor": {"min_tokens": 33},
    "precision": {"precision": "bfloat16"},
    "rules": {"rules": ("attn_q=q8_0",)},
    "parts": {"split_max_size": 700_000},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_arguments_are_refused(case: Case, change: str) -> None:
    stop_after(case, 1)
    before = left(case.folder)
    with pytest.raises(BadInput, match=r"unfinished run with other .*--force"):
        case.run(*MIXES, **CHANGES[change])
    assert left(case.folder) == before


def test_an_unfinished_run_with_other_arguments_is_forced(
    case: Case, undisturbed: Callable[..., dict[str, bytes]]
) -> None:
    with raising(LayerStore, "save", 1):
        case.run("q4_k_m", tokens=token_set(seed=1))
    assert case.run("q4_k_m", force=True).resumed_layers == 0
    assert contents(case.folder) == undisturbed("q4_k_m")


def test_other_types_are_refused(case: Case) -> None:
    """Those that begin with the same one; under other names nothing is in the way."""
    stop_after(case, 1)
    for mixes in (("q4_k_m", "q2_k", "q8_0"), ("q4_k_m", "q3_k_m")):
        with pytest.raises(BadInput, match="unfinished run with other arguments"):
            case.run(*mixes)


def test_another_source_is_refused(case: Case, tmp_path: Path) -> None:
    source = Path(shutil.copytree(case.source, tmp_path / case.source.name))
    stop_after(case, 1)
    for shard in source.glob("*.safetensors"):
        os.utime(shard)
    with pytest.raises(BadInput, match="unfinished run with other source"):
        case.run(*MIXES, source=source)


@pytest.mark.parametrize("damage", ["removed", "shorter", "header"])
def test_a_partial_file_that_somebody_touched_is_refused(case: Case, damage: str) -> None:
    stop_after(case, 1)
    partial = case.folder / "M-Q2_K.gguf.partial"
    if damage == "removed":
        partial.unlink()
    elif damage == "shorter":
        os.truncate(partial, partial.stat().st_size - 1)
    else:
        with partial.open("r+b") as file:
            file.seek(100)
            file.write(b"\xff")
    with pytest.raises(BadInput, match=r"M-Q2_K\.gguf\.partial: was removed or changed.*--force"):
        case.run(*MIXES)
    case.run(*MIXES, force=True)


def test_what_an_earlier_run_left_in_a_partial_file_does_not_show(
    case: Case, undisturbed: Callable[..., dict[str, bytes]]
) -> None:
    """Between tensors are bytes that nobody writes."""
    size = len(undisturbed("q4_k_m")["M.gguf"])
    case.path().with_name("M.gguf.partial").write_bytes(b"\xff" * size)
    case.run("q4_k_m")
    assert contents(case.folder) == undisturbed("q4_k_m")


@pytest.mark.parametrize("name", ["M.gguf", "M.quantkit.json"])
def test_existing_outputs(case: Case, undisturbed: Callable[..., dict[str, bytes]], name: str) -> None:
    (case.folder / name).write_text("precious")
    with pytest.raises(BadInput, match=f"{name}: output exists.*--force"):
        case.run("q4_k_m")
    assert contents(case.folder) == {name: b"precious"}
    case.run("q4_k_m", force=True)
    assert contents(case.folder) == undisturbed("q4_k_m")


def test_forced_runs_keep_the_old_output_to_the_end(case: Case, undisturbed: Callable[..., dict[str, bytes]]) -> None:
    case.path().write_text("old")
    with raising(LayerStore, "save", 1):
        case.run("q4_k_m", force=True)
    assert case.path().read_text() == "old"
    assert case.run("q4_k_m").resumed_layers == 1  # --force was said
    assert contents(case.folder) == undisturbed("q4_k_m")


def test_two_runs_on_one_output_exclude_each_other(case: Case) -> None:
    """Also a plain one and a compensated one, which keep their state in different places."""
    entered = []
    save = LayerStore.save

    def save_and_try(self: LayerStore, *arguments: Any) -> None:
        save(self, *arguments)
        if not entered:
            entered.append(True)
            with pytest.raises(BadInput, match="another run is writing this output"):
                case.run("q4_k_m")
            with pytest.raises(BadInput, match="another run is writing this output"):
                write_gguf(case.source, case.path(), recipe_from_options("q4_k_m"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerStore, "save", save_and_try)
        case.run("q4_k_m")
    assert entered
    assert case.path().exists()
