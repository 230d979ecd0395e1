"""The importance of columns in a range that float32 sums can tell apart."""

from __future__ import annotations

import numpy as np

from quantkit.arrays import Float32

# Columns that share a scale, in the types with the largest groups.
RUN = 32
# Of the most important column, what any other one counts for at least: in its run, else the scale is fitted to one
# column and the others are lost; and anywhere, else their products vanish.
LEAST_OF_RUN, LEAST_OF_ALL = np.float32(1e-5), np.float32(1e-20)


def levelled(importance: Float32) -> Float32:
    """Return `importance` [K] times a power of two, the largest within 1/2 and 1, and none far below its neighbours.

    K must be a multiple of 32, and one of the columns must count.
    """
    largest = importance.max()
    scaled = np.ldexp(importance, -np.frexp(largest)[1])
    runs = np.maximum(scaled, LEAST_OF_ALL).reshape(-1, RUN)
    levelled: Float32 = np.maximum(runs, LEAST_OF_RUN * runs.max(axis=1, keepdims=True)).reshape(-1)
    return levelled
