"""Hidden states in memory and in a file: the same matrix, and a file that leaves nothing behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from quantkit.errors import BadInput
from quantkit.forward.states import HiddenStates

TOKENS, WIDTH = 1000, 48
CPU = torch.device("cpu")
States = Callable[[torch.dtype], HiddenStates]


@pytest.fixture(params=["memory", "file"])
def states(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[States]:
    opened: list[HiddenStates] = []

    def make(dtype: torch.dtype) -> HiddenStates:
        folder = tmp_path if request.param == "file" else None
        opened.append(HiddenStates(TOKENS, WIDTH, dtype, CPU, folder))
        return opened[-1]

    yield make
    for each in opened:
        each.__exit__(None, None, None)


def rows(dtype: torch.dtype, count: int = TOKENS) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_was_written_is_read(states: States, dtype: torch.dtype) -> None:
    matrix = states(dtype)
    index = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))
    values = rows(dtype)
    for part in index.split(70):
        matrix.write(part, values[part])
    assert torch.equal(matrix.read(torch.arange(TOKENS)), values)
    assert torch.equal(matrix.read(index[:7]), values[index[:7]])
    assert matrix.read(index[:0]).shape == (0, WIDTH)


def test_writing_takes_on_the_dtype(states: States) -> None:
    matrix = states(torch.bfloat16)
    matrix.write(torch.tensor([3]), rows(torch.float32, 1))
    assert torch.equal(matrix.read(torch.tensor([3])), rows(torch.float32, 1).bfloat16())


def test_what_was_read_is_a_copy(states: States) -> None:
    matrix = states(torch.float32)
    matrix.write(torch.arange(4), rows(torch.float32, 4))
    copy = matrix.read(torch.arange(4))
    copy += 1
    assert torch.equal(matrix.read(torch.arange(4)), rows(torch.float32, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adding_weighted_rows(states: States, dtype: torch.dtype) -> None:
    matrix = states(torch.float32)
    start, index = rows(torch.float32), torch.tensor([0, 999, 5, 17])
    matrix.write(torch.arange(TOKENS), start)
    weights, values = torch.tensor([0.5, -2.0, 0.0, 1e-3]), rows(dtype, 4)
    matrix.add(index, weights, values)
    expected = start.double()
    expected[index] += weights.double()[:, None] * values.double()
    assert torch.allclose(matrix.read(torch.arange(TOKENS)).double(), expected, rtol=1e-6, atol=1e-7)
    untouched = torch.ones(TOKENS, dtype=torch.bool)
    untouched[index] = False
    assert torch.equal(matrix.read(torch.arange(TOKENS))[untouched], start[untouched])


def test_a_file_has_no_name_and_takes_no_memory(tmp_path: Path) -> None:
    tokens, width = 200_000, 256
    before = mapped(tmp_path)
    with HiddenStates(tokens, width, torch.float32, CPU, tmp_path) as matrix:
        assert list(tmp_path.iterdir()) == []
        assert mapped(tmp_path) == before + 1
        index = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
        low = resident()
        for part in index.split(4096):
            ones = torch.ones(len(part), width)
            matrix.write(part, ones)
            matrix.add(part, torch.ones(len(part)), ones)
            assert float(matrix.read(part).sum()) == 2 * len(part) * width
        # The matrix has 205 MB.
        assert resident() - low < 50e6
    assert mapped(tmp_path) == before


def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that only has a length kills the process with SIGBUS when its pages find no place."""

    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BadInput, match=rf"{tmp_path}: .*No space left.*--memory"):
        HiddenStates(TOKENS, WIDTH, torch.float32, CPU, tmp_path)


def mapped(folder: Path) -> int:
    """How many files of `folder` this process has in its memory map."""
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
