"""Array types shared by all rooms."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
# bfloat16 values as their bits: numpy has no such type.
Bfloat16Bits = npt.NDArray[np.uint16]
