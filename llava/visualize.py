"""Show on the picture itself which patches the reducer kept."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

# Shapes: H x W pixels of the picture, R x C patches of the grid over its square.

VEIL = (255, 255, 255)
VEIL_OPACITY = 0.75
OUTLINE = (214, 39, 40)


def draw_kept(
    image: Image.Image, kept: Sequence[Sequence[bool]] | np.ndarray, aspect: str = "pad"
) -> Image.Image:
    """Draw a copy of a picture with the dropped patches dimmed and the kept ones outlined.

    Args:
        image: The picture as it was asked about.
        kept: Which patches of the model's square input stayed, bool (R, C); anything numpy understands.
        aspect: How the picture became square, as ``image_aspect_ratio`` says: ``pad`` puts it into the
            middle of a square; anything else takes the middle square out of it.

    Returns:
        An RGB picture of the size of ``image``; what the model never saw is dimmed as well.
    """
    grid = np.asarray(kept, dtype=bool)
    square, left, top = _square_in(image.size, pad=aspect == "pad")
    width, height = image.size
    rows = _patch_of(np.arange(height), top, square, grid.shape[0])
    columns = _patch_of(np.arange(width), left, square, grid.shape[1])
    framed = np.pad(grid, 1)  # a dropped border stands for everything outside the square
    drawn = _dim(image.convert("RGB"), ~framed[rows + 1][:, columns + 1])
    _outline(drawn, grid, (left, top), square)
    return drawn


def _square_in(size: tuple[int, int], *, pad: bool) -> tuple[int, int, int]:
    """Side of the model's square, and its left top corner in coordinates of the picture, in pixels."""
    width, height = size
    side = max(size) if pad else min(size)
    return side, -((side - width) // 2), -((side - height) // 2)


def _patch_of(pixels: np.ndarray, start: int, square: int, patches: int) -> np.ndarray:
    """Index of the patch that every pixel's center falls into, along one axis; -1 before, ``patches`` after.

    Args:
        pixels: Coordinates, int (n,).
        start: Coordinate where the square starts.
        square: Side of the square in pixels.
        patches: Number of patches along the side.

    Returns:
        Indices from -1 to ``patches``, int (n,).
    """
    return np.clip(np.floor((pixels + 0.5 - start) * patches / square).astype(int), -1, patches)


def _dim(image: Image.Image, dropped: np.ndarray) -> Image.Image:
    """Lay a veil over the pixels marked in ``dropped``, bool (H, W)."""
    veiled = Image.blend(image, Image.new("RGB", image.size, VEIL), VEIL_OPACITY)
    return Image.composite(veiled, image, Image.fromarray(dropped))


def _outline(image: Image.Image, grid: np.ndarray, corner: tuple[int, int], square: int) -> None:
    """Draw a frame around every patch marked in ``grid``, bool (R, C), onto the picture."""
    draw = ImageDraw.Draw(image)
    left, top = corner
    rows, columns = grid.shape
    line = max(1, square // 400)  # visible on a large photograph too
    for row, column in zip(*np.nonzero(grid), strict=True):
        box = (
            left + round(column * square / columns),
            top + round(row * square / rows),
            left + round((column + 1) * square / columns) - 1,
            top + round((row + 1) * square / rows) - 1,
        )
        if box[2] >= box[0] and box[3] >= box[1]:  # a picture may have fewer pixels than patches
            draw.rectangle(box, outline=OUTLINE, width=line)
