"""Squares turned by shuffles, against numpy."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from quantkit.quantize.kquants.turn import SIDE_OF_BYTES, SIDE_OF_FLOATS, turn_square


@numba.njit
def turned(source: Any, target: Any) -> None:
    turn_square(source, target)


@pytest.mark.parametrize(("side", "dtype"), [(SIDE_OF_BYTES, np.uint8), (SIDE_OF_FLOATS, np.float32)])
def test_squares_inside_of_larger_arrays(side: int, dtype: type) -> None:
    """Rows of both arrays lie further apart than a square is wide, and nothing beside the square is written."""
    source = np.arange(40 * 56).astype(dtype).reshape(40, 56)
    target = np.full((48, 64), 7, dtype)
    expected = target.copy()
    expected[3 : 3 + side, 5 : 5 + side] = source[11 : 11 + side, 2 : 2 + side].T
    turned(source[11 : 11 + side, 2 : 2 + side], target[3 : 3 + side, 5 : 5 + side])
    np.testing.assert_array_equal(target, expected)
