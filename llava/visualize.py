"""Show on the image itself which patches the reducer kept."""

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

# Shapes: H x W pixels of the image, R x C patches of the grid over its square.

VEIL = (0, 0, 0)
VEIL_OPACITY = 0.7
OUTLINE = (255, 221, 51)


def draw_kept(image: Image.Image, kept: ArrayLike, aspect: str | None = "pad") -> Image.Image:
    """Draw a copy of an image with the dropped patches dimmed and the kept ones outlined.

    Args:
        image: The image as it was asked about.
        kept: Which patches of the model's square input stayed, bool (R, C); anything numpy understands.
        aspect: How the image became square: the config's ``image_aspect_ratio``.

    Returns:
        An RGB image of the size of ``image``; what the model never saw is dimmed as well.
    """
    grid = np.asarray(kept, dtype=bool)
    width, height = image.size
    left, top, square_width, square_height = _seen_box(image.size, aspect)
    columns = _patch_of(np.arange(width), left, square_width, grid.shape[1])
    rows = _patch_of(np.arange(height), top, square_height, grid.shape[0])
    framed = np.pad(grid, 1)  # a dropped border stands for everything outside the square
    drawn = _dim(image.convert("RGB"), ~framed[rows + 1][:, columns + 1])
    _outline(drawn, grid, (left, top, square_width, square_height))
    return drawn


def _seen_box(size: tuple[int, int], aspect: str | None) -> tuple[int, int, int, int]:
    """Left, top, width and height, in pixels of the image, of what became the model's square input.

    ``pad`` put the image into the middle of a square, ``anyres`` squeezed it whole (the grid belongs to
    that overview); otherwise the processor took the middle square out of it.
    """
    width, height = size
    if aspect is not None and aspect.startswith("anyres"):
        return 0, 0, width, height
    side = max(size) if aspect == "pad" else min(size)
    return -((side - width) // 2), -((side - height) // 2), side, side


def _patch_of(pixels: np.ndarray, start: int, extent: int, patches: int) -> np.ndarray:
    """Index of the patch that every pixel's center falls into, along one axis; -1 before, ``patches`` after.

    Args:
        pixels: Coordinates, int (n,).
        start: Coordinate where the first patch starts.
        extent: Length of all patches in pixels.
        patches: Number of patches.

    Returns:
        Indices, int (n,).
    """
    return np.clip(np.floor((pixels + 0.5 - start) * patches / extent).astype(int), -1, patches)


def _dim(image: Image.Image, dropped: np.ndarray) -> Image.Image:
    """Lay a veil over the pixels marked in ``dropped``, bool (H, W)."""
    veiled = Image.blend(image, Image.new("RGB", image.size, VEIL), VEIL_OPACITY)
    return Image.composite(veiled, image, Image.fromarray(dropped))


def _outline(image: Image.Image, grid: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """Draw a frame around every patch marked in ``grid``, bool (R, C), which lies over ``box``."""
    draw = ImageDraw.Draw(image)
    left, top, width, height = box
    rows, columns = grid.shape
    line = max(1, max(width, height) // 400)  # visible on a large photograph too
    for row, column in zip(*np.nonzero(grid), strict=True):
        x0, x1 = (left + round(edge * width / columns) for edge in (column, column + 1))
        y0, y1 = (top + round(edge * height / rows) for edge in (row, row + 1))
        if x0 < x1 and y0 < y1:  # an image may have fewer pixels than patches
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=OUTLINE, width=line)
