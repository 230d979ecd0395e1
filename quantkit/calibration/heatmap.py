"""The coverage as a picture: layers from top to bottom, experts from left to right, brighter with more tokens."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from quantkit.calibration.coverage import LayerCoverage

PICTURE_WIDTH = 1536  # about; a cell is 6 pixels for M2.7's 256 experts, at most 24 for small models
LEFT, TOP, BOTTOM, RIGHT = 60, 30, 84, 20
LEGEND_WIDTH, LEGEND_HEIGHT = 400, 12
BACKGROUND, INK, EMPTY = (255, 255, 255), (30, 30, 30), (200, 30, 30)
# Few tokens to many: dark blue over green to yellow, on a logarithmic scale. No token at all: red.
STOPS = np.array([(40, 20, 90), (30, 90, 140), (40, 160, 120), (250, 230, 60)], np.float64)


def draw_heatmap(layers: list[LayerCoverage], floor: int) -> bytes:
    """The routed tokens of `layers` as a PNG; what the floor added is not in it."""
    routed = np.stack([layer.routed for layer in layers])
    most = max(int(routed.max()), 1)
    cell = min(max(PICTURE_WIDTH // routed.shape[1], 3), 24)
    colours = _colours(np.log1p(routed) / np.log1p(most))
    colours[routed == 0] = EMPTY
    height, width = (size * cell for size in routed.shape)
    size = (max(width, LEGEND_WIDTH) + LEFT + RIGHT, height + TOP + BOTTOM)
    picture = Image.new("RGB", size, BACKGROUND)
    picture.paste(_enlarged(colours, cell, cell), (LEFT, TOP))
    scale = _colours(np.linspace(0, 1, LEGEND_WIDTH)[None])
    picture.paste(_enlarged(scale, LEGEND_HEIGHT, 1), (LEFT, TOP + height + 16))
    _label(ImageDraw.Draw(picture), routed, floor, most, cell)
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def _colours(level: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """RGB [..., 3] of `level` from 0 to 1."""
    place = level * (len(STOPS) - 1)
    below = np.minimum(place.astype(int), len(STOPS) - 2)
    part = (place - below)[..., None]
    colours: npt.NDArray[np.float64] = STOPS[below] * (1 - part) + STOPS[below + 1] * part
    return colours


def _enlarged(colours: npt.NDArray[np.float64], rows: int, columns: int) -> Image.Image:
    return Image.fromarray(np.kron(colours, np.ones((rows, columns, 1))).astype(np.uint8))


def _label(draw: ImageDraw.ImageDraw, routed: npt.NDArray[Any], floor: int, most: int, cell: int) -> None:
    font = ImageFont.load_default()

    def write(x: float, y: float, text: str) -> None:
        draw.text((x, y), text, fill=INK, font=font)

    write(4, 4, "layer")
    write(LEFT, 4, "expert")
    every = max(round(64 / cell), 1)
    for layer in range(0, routed.shape[0], max(round(20 / cell), 1)):
        write(LEFT - 24, TOP + layer * cell - 2, str(layer))
    for expert in range(0, routed.shape[1], every):
        write(LEFT + expert * cell, TOP - 13, str(expert))
    below = TOP + routed.shape[0] * cell + 16 + LEGEND_HEIGHT + 2
    # Ticks at powers of ten and at the ends.
    for tokens in sorted({0, most, *(10**power for power in range(1, 7) if 10**power < 0.7 * most)}):
        write(LEFT + LEGEND_WIDTH * np.log1p(tokens) / np.log1p(most), below, str(tokens))
    none, few = int((routed == 0).sum()), int((routed < floor).sum())
    write(4, below + 18, f"tokens routed to an expert; red: none ({none} experts); below the floor of {floor}: {few}")
