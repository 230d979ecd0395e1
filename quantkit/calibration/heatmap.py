"""The coverage as a picture: layers from top to bottom, experts from left to right, brighter with more tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from quantkit.calibration.coverage import LayerCoverage

CELL = 6
MARGIN_LEFT, MARGIN_TOP, MARGIN_BOTTOM, MARGIN_RIGHT = 60, 30, 50, 20
BACKGROUND, INK, EMPTY = (255, 255, 255), (30, 30, 30), (200, 30, 30)
# Few tokens to many: dark blue over green to yellow, on a logarithmic scale. No token at all: red.
STOPS = np.array([(40, 20, 90), (30, 90, 140), (40, 160, 120), (250, 230, 60)], np.float64)
LABEL_EVERY_LAYERS, LABEL_EVERY_EXPERTS = 10, 32


def write_heatmap(path: Path, layers: list[LayerCoverage], floor: int) -> None:
    """Write the routed tokens of `layers` as a PNG; what the floor added is not in it."""
    routed = np.stack([layer.routed for layer in layers])
    cells = np.kron(_colours(routed), np.ones((CELL, CELL, 1))).astype(np.uint8)
    height, width = cells.shape[:2]
    size = (max(width, 6 * CELL * 20) + MARGIN_LEFT + MARGIN_RIGHT, height + MARGIN_TOP + MARGIN_BOTTOM)
    picture = Image.new("RGB", size, BACKGROUND)
    picture.paste(Image.fromarray(cells), (MARGIN_LEFT, MARGIN_TOP))
    _label(ImageDraw.Draw(picture), routed, floor, height)
    partial = path.with_name(path.name + ".partial")
    picture.save(partial, format="PNG")
    partial.replace(path)


def _colours(routed: np.ndarray) -> np.ndarray:
    level = np.log1p(routed) / max(np.log1p(routed.max()), 1e-9) * (len(STOPS) - 1)
    below = np.minimum(level.astype(int), len(STOPS) - 2)
    part = (level - below)[..., None]
    colours: np.ndarray = STOPS[below] * (1 - part) + STOPS[below + 1] * part
    colours[routed == 0] = EMPTY
    return colours


def _label(draw: ImageDraw.ImageDraw, routed: np.ndarray, floor: int, height: int) -> None:
    font = ImageFont.load_default()

    def write(x: int, y: int, text: str) -> None:
        draw.text((x, y), text, fill=INK, font=font)

    write(4, 8, "layer / expert")
    for layer in range(0, routed.shape[0], LABEL_EVERY_LAYERS):
        write(MARGIN_LEFT - 24, MARGIN_TOP + layer * CELL - 3, str(layer))
    for expert in range(0, routed.shape[1], LABEL_EVERY_EXPERTS):
        write(MARGIN_LEFT + expert * CELL, MARGIN_TOP - 14, str(expert) if expert else "")
    write(4, MARGIN_TOP + height + 8, f"routed tokens per expert: {routed.min()} to {routed.max()}, log scale")
    below = int((routed < floor).sum())
    write(4, MARGIN_TOP + height + 24, f"red: none ({int((routed == 0).sum())}); below the floor of {floor}: {below}")
