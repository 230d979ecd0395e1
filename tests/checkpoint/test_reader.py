"""Row reads against whole tensors read by the safetensors library, and damage found while reading."""

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import Damage, MakeCheckpoint
from safetensors.torch import load_file

from quantkit.checkpoint import shards
from quantkit.checkpoint.index import open_checkpoint
from quantkit.checkpoint.reader import Reader
from quantkit.errors import BadInput

BLOCK = (128, 128)
EXPERT = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
ROUTER = "model.layers.0.block_sparse_moe.gate.weight"
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"


def stored(folder: Path, name: str) -> torch.Tensor:
    return load_file(Damage(folder).shard_of(name))[name]


def dequantized(folder: Path, name: str) -> np.ndarray:
    weight = stored(folder, name)
    scale = stored(folder, name + "_scale_inv").repeat_interleave(128, 0).repeat_interleave(128, 1)
    return (weight.float() * scale[: weight.shape[0], : weight.shape[1]]).numpy()


def read(folder: Path, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
    checkpoint = open_checkpoint(folder)
    scale = name + "_scale_inv"
    with Reader(checkpoint, BLOCK) as reader:
        return reader.read_rows(name, scale if scale in checkpoint.tensors else None, rows)


@pytest.mark.parametrize("name", [ROUTER, EMBEDDING, NORM, "model.layers.0.block_sparse_moe.e_score_correction_bias"])
def test_unquantized_tensors_are_exact(small_checkpoint: Path, name: str) -> None:
    assert np.array_equal(read(small_checkpoint, name), stored(small_checkpoint, name).float().numpy())


@pytest.mark.parametrize("name", [EXPERT, "model.layers.1.self_attn.k_proj.weight"])
def test_fp8_tensors_are_multiplied_by_their_scales(small_checkpoint: Path, name: str) -> None:
    expected = dequantized(small_checkpoint, name)
    assert np.array_equal(read(small_checkpoint, name), expected)
    assert np.abs(expected).max() > 0


@pytest.mark.parametrize("rows", [(0, 1), (0, 256), (127, 129), (128, 256), (255, 256), (3, 250), (7, 7)])
@pytest.mark.parametrize("name", [EXPERT, EMBEDDING])
def test_a_range_of_rows_is_a_slice_of_the_whole(small_checkpoint: Path, name: str, rows: tuple[int, int]) -> None:
    part = read(small_checkpoint, name, rows)
    assert part.shape[0] == rows[1] - rows[0]
    assert np.array_equal(part, read(small_checkpoint, name)[slice(*rows)])


def test_ragged_blocks(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "ragged", layers=1, experts=2, hidden=192, width=160)
    assert stored(folder, EXPERT).shape == (192, 160)
    assert stored(folder, EXPERT + "_scale_inv").shape == (2, 2)
    assert np.array_equal(read(folder, EXPERT), dequantized(folder, EXPERT))
    assert np.array_equal(read(folder, EXPERT, (130, 192)), dequantized(folder, EXPERT)[130:])


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_an_fp8_nan_is_refused(damaged: Damage, code: int) -> None:
    columns = stored(damaged.folder, EXPERT).shape[1]
    shard = damaged.poke(EXPERT, bytes([code]), at=3 * columns + 5)
    with pytest.raises(BadInput, match=rf"{shard}: tensor {EXPERT}: NaN or Inf \(first at \[3, 5\]"):
        read(damaged.folder, EXPERT)
    assert read(damaged.folder, EXPERT, (4, 8)).shape[0] == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_scale_that_is_not_finite_is_refused(damaged: Damage, value: float) -> None:
    name = EXPERT + "_scale_inv"
    shard = damaged.poke(name, struct.pack("<f", value), at=4)
    with pytest.raises(BadInput, match=rf"{shard}: tensor {name}: NaN or Inf \(first at \[0, 1\]"):
        read(damaged.folder, EXPERT)


def test_a_scale_that_makes_a_product_overflow_is_refused(damaged: Damage) -> None:
    damaged.poke(EXPERT + "_scale_inv", struct.pack("<f", 3e38))
    with pytest.raises(BadInput, match=f"tensor {EXPERT}: NaN or Inf"):
        read(damaged.folder, EXPERT)


@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, 0xFF80])
def test_a_bf16_nan_or_infinity_is_refused(damaged: Damage, bits: int) -> None:
    shard = damaged.poke(NORM, struct.pack("<H", bits), at=2 * 9)
    with pytest.raises(BadInput, match=rf"{shard}: tensor {NORM}: NaN or Inf \(first at \[9\]"):
        read(damaged.folder, NORM)


def test_infinities_of_both_signs_do_not_cancel(damaged: Damage) -> None:
    damaged.poke(ROUTER, struct.pack("<ff", float("inf"), float("-inf")))
    with pytest.raises(BadInput, match=f"tensor {ROUTER}: NaN or Inf"):
        read(damaged.folder, ROUTER)


def test_large_values_whose_sum_overflows_are_accepted(damaged: Damage) -> None:
    damaged.poke(ROUTER, struct.pack("<ff", 3e38, 3e38))
    assert read(damaged.folder, ROUTER)[0, 1] == np.float32(3e38)


def test_a_file_truncated_after_it_was_opened_is_refused(damaged: Damage) -> None:
    checkpoint = open_checkpoint(damaged.folder)
    entry = checkpoint.tensors[EMBEDDING]
    with Reader(checkpoint, BLOCK) as reader:
        whole = reader.read_rows(EMBEDDING, None)
        with entry.path.open("r+b") as file:
            file.truncate(entry.offset + entry.nbytes - 1)
        with pytest.raises(BadInput, match=f"{entry.path}: tensor {EMBEDDING}: the file ends early"):
            reader.read_rows(EMBEDDING, None)
        assert np.array_equal(reader.read_rows(EMBEDDING, None, (0, 4)), whole[:4])


def test_a_file_removed_after_the_headers_were_read_is_refused(damaged: Damage) -> None:
    checkpoint = open_checkpoint(damaged.folder)
    path = checkpoint.tensors[EMBEDDING].path
    path.unlink()
    with (
        Reader(checkpoint, BLOCK) as reader,
        pytest.raises(BadInput, match=f"{path}: tensor {EMBEDDING}: cannot be read"),
    ):
        reader.read_rows(EMBEDDING, None)


def test_fp8_codes_and_scales_are_those_of_the_shard(small_checkpoint: Path) -> None:
    expected = stored(small_checkpoint, EXPERT).view(torch.uint8).numpy()
    with Reader(open_checkpoint(small_checkpoint), BLOCK) as reader:
        assert reader.is_fp8(EXPERT)
        assert not reader.is_fp8(ROUTER)
        codes, scale = reader.read_fp8(EXPERT, EXPERT + "_scale_inv", (3, 250))
        assert np.array_equal(codes, expected[3:250])
        assert np.array_equal(scale, stored(small_checkpoint, EXPERT + "_scale_inv").numpy())
        # The next call uses the memory again, other threads have theirs.
        other, _ = reader.read_fp8(EXPERT, EXPERT + "_scale_inv", (0, 200))
        assert np.shares_memory(codes, other)
        with ThreadPoolExecutor(1) as pool:
            third, _ = pool.submit(reader.read_fp8, EXPERT, EXPERT + "_scale_inv", (0, 200)).result()
        assert not np.shares_memory(third, other)


def test_damage_of_fp8_is_found_in_codes_and_products(damaged: Damage) -> None:
    columns = stored(damaged.folder, EXPERT).shape[1]
    damaged.poke(EXPERT, b"\x7f", at=3 * columns + 5)
    with (
        Reader(open_checkpoint(damaged.folder), BLOCK) as reader,
        pytest.raises(BadInput, match=r"NaN or Inf \(first at \[3, 5\]"),
    ):
        reader.read_fp8(EXPERT, EXPERT + "_scale_inv", (0, 8))
    damaged.poke(EXPERT, b"\x7e", at=3 * columns + 5)  # 448, the largest code
    for scale, fits in ((7e35, True), (1e36, False)):
        damaged.poke(EXPERT + "_scale_inv", struct.pack("<f", scale))
        with Reader(open_checkpoint(damaged.folder), BLOCK) as reader:
            if fits:
                reader.read_fp8(EXPERT, EXPERT + "_scale_inv", (0, 8))
            else:
                with pytest.raises(BadInput, match="NaN or Inf"):
                    reader.read_fp8(EXPERT, EXPERT + "_scale_inv", (0, 8))


@pytest.mark.parametrize("name", [EXPERT, EMBEDDING, NORM])
def test_stored_bytes_go_into_memory_of_the_caller(small_checkpoint: Path, name: str) -> None:
    expected = stored(small_checkpoint, name).view(torch.uint8).numpy().reshape(-1)
    buffer = np.zeros(expected.size + 5, np.uint8)
    with Reader(open_checkpoint(small_checkpoint), BLOCK) as reader:
        read = reader.read_stored(name, None, buffer)
    assert np.shares_memory(read, buffer)
    assert np.array_equal(read, expected)
    assert not buffer[expected.size :].any()


@pytest.mark.parametrize("rows", [None, (2, 200)])
def test_what_will_be_needed_is_asked_for_in_pieces(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, rows: tuple[int, int] | None
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(shards, "READ_AHEAD", 1000)
    monkeypatch.setattr(os, "posix_fadvise", lambda file, offset, length, advice: asked.append((offset, length)))
    checkpoint = open_checkpoint(small_checkpoint)
    with Reader(checkpoint, BLOCK) as reader:
        reader.will_need(EXPERT, rows)
    entry = checkpoint.tensors[EXPERT]
    first, last = rows or (0, entry.shape[0])
    begin, end = (entry.offset + row * entry.shape[1] for row in (first, last))
    assert all(length <= 1000 for _, length in asked)
    assert [offset for offset, _ in asked] == list(range(begin, end, 1000))
    assert sum(length for _, length in asked) == end - begin
