"""An INT4 run that stopped goes on at the layer that was not finished; a folder has its name only when it is whole."""

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
from quantkit.run.calibrated import forward as calibrated_forward
from quantkit.run.int4 import folder, passes, quantize

SIDECARS = 4
Undisturbed = Callable[..., dict[str, bytes]]


class Stop(Exception):
    """Raised in the middle of a run."""


@pytest.fixture(scope="module")
def source(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "checkpoint", **SIZE)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
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
def test_goes_on_where_it_was(case: Case, undisturbed: Undisturbed, method: str, layers: int) -> None:
    stop_after(case, layers)
    assert left(case.out.parent) == ["M.layers", "M.partial"]
    assert case.run().resumed_layers == layers
    case.matches(undisturbed(method))


@pytest.mark.parametrize("options", [{"then_gptq": True}, {"attention": "int4", "symmetric": True}], ids=str)
@pytest.mark.parametrize("method", ["awq"])
def test_stopped_more_than_once(case: Case, undisturbed: Undisturbed, method: str, options: dict[str, Any]) -> None:
    for layers in (1, 0, 2):  # counted from where it was
        stop_after(case, layers, **options)
    assert case.run(**options).resumed_layers == LAYERS - 1
    case.matches(undisturbed(method, **options))


def test_stopped_in_the_middle_of_a_layer(case: Case, undisturbed: Undisturbed) -> None:
    """Some of its experts are in the file then, and are written again."""
    with raising(folder.PackedFolder, "write_quantized", 17), pytest.raises(Stop):
        case.run()
    assert case.run().resumed_layers == 1
    case.matches(undisturbed("gptq"))


# Between the last layer and the end


@contextmanager
def killed_at_rename(target: Path, *, after: bool = False) -> Iterator[None]:
    """Stop where a folder or file is about to be called `target`, or just was."""
    rename = os.replace

    def replaced(source: Path, name: Path) -> None:
        if name == target and not after:
            raise Stop
        rename(source, name)
        if name == target:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replaced)
        with pytest.raises(Stop):
            yield


@contextmanager
def killed_while_removing(target: Path) -> Iterator[None]:
    """Stop when of the folder `target` some files are gone."""
    remove = shutil.rmtree

    def removed(path: Path, **options: Any) -> None:
        if path == target and path.is_dir():
            max(path.glob("*.*")).unlink()
            raise Stop
        remove(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", removed)
        with pytest.raises(Stop):
            yield


MOMENTS = {
    "all layers done": (quantize, "publish_folder", 0),
    "before the shards": (folder, "publish", 0),
    **{f"before file {at}": (folder, "write_aside", at) for at in range(SIDECARS + 2)},
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_stopped_before_the_folder_has_its_name(case: Case, undisturbed: Undisturbed, method: str, moment: str) -> None:
    with raising(*MOMENTS[moment]), pytest.raises(Stop):
        case.run()
    assert left(case.out.parent) == ["M.layers", "M.partial"]
    assert case.run().resumed_layers == LAYERS
    case.matches(undisturbed(method))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_stopped_at_the_last_rename(case: Case, undisturbed: Undisturbed, method: str, after: bool) -> None:
    with killed_at_rename(case.out, after=after):
        case.run()
    assert left(case.out.parent) == (["M", "M.layers"] if after else ["M.layers", "M.partial"])
    assert case.run().resumed_layers == LAYERS
    case.matches(undisturbed(method))


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_stopped_while_the_layers_are_removed(case: Case, undisturbed: Undisturbed, method: str) -> None:
    """The output is complete then: no rerun takes it for an unfinished one."""
    with killed_while_removing(case.store):
        case.run()
    with pytest.raises(BadInput, match="output exists"):
        case.run()
    assert contents(case.out) == undisturbed(method)
    assert case.run(force=True).resumed_layers == 0
    case.matches(undisturbed(method))


# An earlier output


OTHER = {"group_size": 32}


@pytest.mark.parametrize("moment", ["in a layer", "before the rename", "after the rename", "while removed"])
def test_an_output_is_whole_until_it_is_replaced(case: Case, undisturbed: Undisturbed, moment: str) -> None:
    case.run(**OTHER)
    with pytest.raises(BadInput, match=r"output exists; .*--force"):
        case.run()
    old, new = undisturbed("gptq", **OTHER), undisturbed("gptq")
    if moment == "in a layer":
        with raising(LayerStore, "save", 2), pytest.raises(Stop):
            case.run(force=True)
    elif moment == "while removed":
        with killed_while_removing(case.out.with_name("M.replaced.partial")):
            case.run(force=True)
    else:
        with killed_at_rename(case.out, after=moment == "after the rename"):
            case.run(force=True)
    # Between two renames there is none.
    if case.out.exists():
        assert contents(case.out) == (old if moment == "in a layer" else new)
    else:
        assert moment == "before the rename"
    assert case.run().resumed_layers == (2 if moment == "in a layer" else LAYERS)
    case.matches(new)


def test_force_leaves_nothing_of_an_unfinished_run(
    case: Case, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shards may have had other names."""
    with monkeypatch.context() as patch:
        patch.setattr(quantize, "lay_out", functools.partial(quantize.lay_out, max_bytes=200_000))
        stop_after(case, 2)
        assert len(left(case.partial)) > 3
        with pytest.raises(BadInput, match="unfinished run with other arguments"):
            case.run(**OTHER)
    assert case.run(force=True, **OTHER).resumed_layers == 0
    case.matches(undisturbed("gptq", **OTHER))


@pytest.mark.parametrize("at", [1, 2, 3])
def test_several_shards(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Stopped when some of them have their names within the folder."""
    monkeypatch.setattr(quantize, "lay_out", functools.partial(quantize.lay_out, max_bytes=200_000))
    whole = Case(case.source, tmp_path / "whole" / "M", "gptq")
    whole.out.parent.mkdir()
    whole.run()
    shard = sorted(whole.out.glob("*.safetensors"))[at].name
    with killed_at_rename(case.partial / shard, after=True):
        case.run()
    assert case.run().resumed_layers == LAYERS
    case.matches(contents(whole.out))


def test_a_folder_of_somebody_else_is_left_alone(case: Case) -> None:
    for taken in (case.partial, case.store):
        taken.mkdir()
        (taken / "thesis.txt").write_text("x")
        for force in (False, True):
            with pytest.raises(BadInput, match=rf"{taken.name}.*move it away"):
                case.run(force=force)
        assert left(case.out.parent) == [taken.name]
        assert left(taken) == ["thesis.txt"]
        shutil.rmtree(taken)


# Another run's folder


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tokens": token_set(seed=1)}, "tokens"),
        ({"tokens": token_set(lengths=(128,) * 3)}, "tokens"),
        ({"precision": "bfloat16"}, "precision"),
        ({"min_tokens": 33}, "arguments"),
        ({"group_size": 32}, "arguments"),
        ({"bits": 8}, "arguments"),
        ({"attention": "int4"}, "arguments"),
        ({"format_name": "compressed-tensors"}, "arguments"),
    ],
    ids=str,
)
def test_other_arguments_are_refused(case: Case, undisturbed: Undisturbed, options: dict[str, Any], word: str) -> None:
    stop_after(case, 2)
    with pytest.raises(BadInput, match=rf"unfinished run with other .*{word}.*--force") as refused:
        case.run(**options)
    assert refused.value.exit_code == 2
    assert case.run().resumed_layers == 2
    case.matches(undisturbed("gptq"))


@pytest.mark.parametrize("method", ["awq", "rtn"])
def test_another_method_is_refused(case: Case, method: str) -> None:
    stop_after(case, 2)
    other = Case(case.source, case.out, "gptq")
    with pytest.raises(BadInput, match=r"unfinished run with other .*arguments.*--force"):
        other.run()


@pytest.mark.parametrize("change", ["shards", "config"])
def test_another_source_is_refused(case: Case, undisturbed: Undisturbed, tmp_path: Path, change: str) -> None:
    copy = Path(shutil.copytree(case.source, tmp_path / "copy"))
    own = Case(copy, case.out, "gptq")
    stop_after(own, 2)
    config = copy / "config.json"
    before = config.read_text()
    if change == "shards":
        shard = min(copy.glob("*.safetensors"))
        os.utime(shard, (1, 1))  # same names and headers, another file
    else:
        config.write_text(json.dumps(json.loads(before) | {"rope_theta": 10_000}))
    with pytest.raises(BadInput, match="other source"):
        own.run()
    config.write_text(before)
    assert own.run(force=True).resumed_layers == 0
    own.matches(undisturbed("gptq"))


# A folder that lost something


@pytest.mark.parametrize("damage", ["removed", "cut", "folder"])
@pytest.mark.parametrize("layers", [2, LAYERS])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_lost_shards_are_refused(case: Case, undisturbed: Undisturbed, method: str, layers: int, damage: str) -> None:
    if layers < LAYERS:
        stop_after(case, layers)
    else:
        with raising(quantize, "publish_folder"), pytest.raises(Stop):
            case.run()
    shard = case.partial / "model.safetensors.partial"
    if damage == "folder":
        shutil.rmtree(case.partial)
    elif damage == "removed":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"model\.safetensors\.partial: was removed or changed .*--force"):
        case.run()
    assert not case.out.exists()
    assert case.run(force=True).resumed_layers == 0
    case.matches(undisturbed(method))


def test_a_lost_folder_is_not_taken_for_an_earlier_output(case: Case, undisturbed: Undisturbed) -> None:
    case.run(**OTHER)
    with raising(quantize, "publish_folder"), pytest.raises(Stop):
        case.run(force=True)
    shutil.rmtree(case.partial)
    with pytest.raises(BadInput, match=r"was removed or changed .*--force"):
        case.run()
    assert contents(case.out) == undisturbed("gptq", **OTHER)


def test_damaged_states_are_refused(case: Case, undisturbed: Undisturbed) -> None:
    stop_after(case, 2)
    states = case.store / "hidden-0001"
    raw = bytearray(states.read_bytes())
    raw[len(raw) // 2] ^= 1
    states.write_bytes(raw)
    with pytest.raises(BadInput, match=r"hidden-0001: damaged; start over with --force"):
        case.run()
    assert case.run(force=True).resumed_layers == 0
    case.matches(undisturbed("gptq"))


# Same bytes whatever the machine does


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_threads_and_memory_do_not_change_a_byte(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, precision: str
) -> None:
    found = []
    options = {"attention": "int4"} if method == "gptq" else {}
    for number, (threads, in_memory) in enumerate([(1, True), (2, False), (3, True)]):
        monkeypatch.setattr(passes, "available_threads", lambda threads=threads: threads)
        room = Room(threads, states_in_memory=in_memory)
        monkeypatch.setattr(calibrated_forward, "plan_room", lambda *_, room=room: room)
        one = Case(case.source, tmp_path / str(number) / "M", method)
        one.out.parent.mkdir()
        one.run(precision=precision, **options)
        found.append(contents(one.out))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == SIDECARS + 3


# The command line


def test_an_interrupt_is_exit_code_130(case: Case, cli: Cli, undisturbed: Undisturbed, tmp_path: Path) -> None:
    tokens = token_set()
    save_file({"ids": tokens.ids, "starts": tokens.starts}, tmp_path / "t.safetensors")
    command = ["gptq", case.source, "-o", case.out, "--tokens", tmp_path / "t.safetensors", "--group-size", 64]
    with raising(LayerStore, "save", 2, KeyboardInterrupt):
        result = cli(*command, "--json")
    assert result.code == 130
    assert result.error_lines == ["quantkit: error: interrupted; repeat the same command to go on"]
    assert left(case.out.parent) == ["M.layers", "M.partial"]
    again = cli(*command, "--json")
    assert again.code == 0
    assert again.json()["resumed_layers"] == 2
    assert left(case.out.parent) == ["M"]
