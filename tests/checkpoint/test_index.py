"""A checkpoint folder opened: only the weight_map and the shards' own headers are believed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from harness import Damage
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quantkit.checkpoint.index import open_checkpoint
from quantkit.errors import BadInput

NORM = "model.norm.weight"


def test_official_layout_with_a_wrong_count_and_total_is_accepted(small_checkpoint: Path) -> None:
    index = json.loads((small_checkpoint / "model.safetensors.index.json").read_text())
    shards = sorted(small_checkpoint.glob("*.safetensors"))
    # The traps are there: names count from 0, to a number that is not the number of shards; the size is another one.
    assert shards[0].name.startswith("model-00000-of-")
    assert len(shards) > 2
    assert f"-of-{len(shards):05d}" not in shards[0].name
    assert index["metadata"]["total_size"] != sum(shard.stat().st_size for shard in shards)
    checkpoint = open_checkpoint(small_checkpoint)
    assert sorted(checkpoint.shards) == shards
    assert checkpoint.config == json.loads((small_checkpoint / "config.json").read_text())
    expected = {}
    for shard in shards:
        with safe_open(shard, "pt") as library:
            expected |= {name: (shard, library.get_slice(name).get_shape()) for name in library.keys()}  # noqa: SIM118
    assert {name: (entry.path, list(entry.shape)) for name, entry in checkpoint.tensors.items()} == expected


def test_a_single_file_needs_no_index(damaged: Damage) -> None:
    tensors = {}
    for shard in damaged.folder.glob("*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    damaged.index_path.unlink()
    save_file(tensors, damaged.folder / "model.safetensors")
    checkpoint = open_checkpoint(damaged.folder)
    assert set(checkpoint.tensors) == set(tensors)
    assert checkpoint.shards == (damaged.folder / "model.safetensors",)


def test_shards_in_a_folder_below_are_accepted(damaged: Damage) -> None:
    (damaged.folder / "weights").mkdir()
    index = damaged.index()
    for shard in set(index["weight_map"].values()):
        shutil.move(damaged.folder / shard, damaged.folder / "weights" / shard)
    damaged.edit_weight_map(**{name: f"weights/{shard}" for name, shard in index["weight_map"].items()})
    checkpoint = open_checkpoint(damaged.folder)
    assert all(shard.parent.name == "weights" for shard in checkpoint.shards)
    assert set(checkpoint.shard_marks()) == {f"weights/{shard}" for shard in index["weight_map"].values()}


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "a/../../model.safetensors",
        "..",
        "/etc/model.safetensors",
        "//host/model.safetensors",
        "C:\\model.safetensors",
        "C:model.safetensors",
        "\\\\host\\share\\model.safetensors",
        "\\model.safetensors",
        "..\\model.safetensors",
        "a\\..\\..\\model.safetensors",
        "model\0.safetensors",
        "",
        None,
        7,
        ["model.safetensors"],
        {"file": "model.safetensors"},
    ],
)
def test_a_shard_outside_of_the_folder_is_refused(damaged: Damage, shard: object) -> None:
    # A file where the path leads must make no difference.
    shutil.copy(damaged.shard_of(NORM), damaged.folder.parent / "model.safetensors")
    damaged.edit_weight_map(**{NORM: shard})
    with pytest.raises(BadInput, match=rf"{damaged.index_path}: tensor {NORM}: shard path"):
        open_checkpoint(damaged.folder)


@pytest.mark.parametrize("shard", ["\ud800.safetensors", "x" * 300 + ".safetensors", ".", "no such.safetensors"])
def test_a_shard_name_that_no_file_can_have_is_refused(damaged: Damage, shard: str) -> None:
    damaged.edit_weight_map(**{NORM: shard})
    with pytest.raises(BadInput):
        open_checkpoint(damaged.folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": null}',
        "{",
        '{"a": 1' + "1" * 5000,
    ],
    ids=["empty", "list", "null", "no map", "empty map", "list as map", "null as map", "cut", "long number"],
)
def test_a_broken_index_is_refused(damaged: Damage, text: str) -> None:
    damaged.index_path.write_text(text)
    with pytest.raises(BadInput, match=str(damaged.index_path)):
        open_checkpoint(damaged.folder)


def test_an_index_that_is_not_utf8_is_refused(damaged: Damage) -> None:
    damaged.index_path.write_bytes(b'{"weight_map": {"\xff": "a"}}')
    with pytest.raises(BadInput, match=str(damaged.index_path)):
        open_checkpoint(damaged.folder)


def test_a_missing_shard_is_named(damaged: Damage) -> None:
    shard = damaged.shard_of(NORM)
    shard.unlink()
    with pytest.raises(BadInput, match=f"{shard}: shard is missing"):
        open_checkpoint(damaged.folder)


def test_a_folder_in_the_place_of_a_shard_is_refused(damaged: Damage) -> None:
    shard = damaged.shard_of(NORM)
    shard.unlink()
    shard.mkdir()
    with pytest.raises(BadInput, match=str(shard)):
        open_checkpoint(damaged.folder)


def test_a_tensor_that_its_shard_does_not_hold_is_named(damaged: Damage) -> None:
    other = next(shard for shard in damaged.index()["weight_map"].values() if shard != damaged.shard_of(NORM).name)
    damaged.edit_weight_map(**{NORM: other})
    with pytest.raises(BadInput, match=f"{damaged.folder / other}: tensor {NORM} is listed .* but not in this shard"):
        open_checkpoint(damaged.folder)


def test_a_tensor_that_the_index_does_not_list_is_named(damaged: Damage) -> None:
    shard = damaged.shard_of(NORM)
    save_file(load_file(shard) | {"stowaway": torch.zeros(3)}, shard)
    with pytest.raises(BadInput, match=f"{shard}: tensor stowaway is not listed"):
        open_checkpoint(damaged.folder)


def test_a_tensor_in_two_shards_is_refused(damaged: Damage) -> None:
    home = damaged.shard_of(NORM)
    other = next(shard for shard in damaged.folder.glob("*.safetensors") if shard != home)
    save_file(load_file(other) | {NORM: load_file(home)[NORM]}, other)
    with pytest.raises(BadInput, match=f"{other}: tensor {NORM} is not listed for this shard"):
        open_checkpoint(damaged.folder)


@pytest.mark.parametrize("folder", ["nothing", "file"])
def test_what_is_not_a_folder_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("{}")
    with pytest.raises(BadInput, match=f"{folder}: not a folder"):
        open_checkpoint(tmp_path / folder)


def test_a_folder_without_weights_is_refused(damaged: Damage) -> None:
    damaged.index_path.unlink()
    with pytest.raises(BadInput, match=r"neither model\.safetensors\.index\.json nor model\.safetensors found"):
        open_checkpoint(damaged.folder)


def test_marks_change_with_the_shard_alone(damaged: Damage) -> None:
    before = open_checkpoint(damaged.folder)
    marks = before.shard_marks()
    shard = damaged.poke(NORM, b"\x00\x40")
    after = open_checkpoint(damaged.folder)
    assert {name for name, mark in after.shard_marks().items() if marks[name] != mark} == {shard.name}
    assert after.layout_hash() == before.layout_hash()


def test_the_layout_hash_is_the_same_for_a_copy_in_other_shards(damaged: Damage, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(damaged.folder, tmp_path / "copy"))
    tensors = {}
    for shard in copy.glob("*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    (copy / "model.safetensors.index.json").unlink()
    save_file(tensors, copy / "model.safetensors")
    original = open_checkpoint(damaged.folder).layout_hash()
    assert open_checkpoint(copy).layout_hash() == original
    Damage(copy).edit_json("config.json", rope_theta=10000)
    assert open_checkpoint(copy).layout_hash() != original
