"""Characters of 5 x 7 cells, drawn without a font, so that they are the same everywhere."""

import numpy as np
from PIL import Image, ImageDraw

GLYPHS: dict[str, tuple[str, ...]] = {
    "2": (".###.", "#...#", "....#", "..##.", ".#...", "#....", "#####"),
    "3": ("####.", "....#", "....#", ".###.", "....#", "....#", "####."),
    "4": ("...#.", "..##.", ".#.#.", "#..#.", "#####", "...#.", "...#."),
    "5": ("#####", "#....", "####.", "....#", "....#", "#...#", ".###."),
    "6": (".###.", "#....", "#....", "####.", "#...#", "#...#", ".###."),
    "7": ("#####", "....#", "...#.", "..#..", "..#..", "..#..", "..#.."),
    "8": (".###.", "#...#", "#...#", ".###.", "#...#", "#...#", ".###."),
    "9": (".###.", "#...#", "#...#", ".####", "....#", "....#", ".###."),
    "A": (".###.", "#...#", "#...#", "#####", "#...#", "#...#", "#...#"),
    "C": (".####", "#....", "#....", "#....", "#....", "#....", ".####"),
    "F": ("#####", "#....", "#....", "####.", "#....", "#....", "#...."),
    "H": ("#...#", "#...#", "#...#", "#####", "#...#", "#...#", "#...#"),
    "K": ("#...#", "#..#.", "#.#..", "##...", "#.#..", "#..#.", "#...#"),
    "L": ("#....", "#....", "#....", "#....", "#....", "#....", "#####"),
    "T": ("#####", "..#..", "..#..", "..#..", "..#..", "..#..", "..#.."),
    "X": ("#...#", "#...#", ".#.#.", "..#..", ".#.#.", "#...#", "#...#"),
}
CHARACTERS = tuple(GLYPHS)
COLUMNS, ROWS = 5, 7
FINE = 4


def draw_character(
    picture: Image.Image,
    character: str,
    center: tuple[float, float],
    height: float,
    ink: tuple[int, int, int],
) -> None:
    """Draw an upright character, anti-aliased by drawing it four times as large.

    Args:
        picture: Is drawn on, RGB.
        character: One of `CHARACTERS`.
        center: In pixels.
        height: In pixels.
        ink: Its color.
    """
    reach = int(height / 2) + 2
    left, top = round(center[0]) - reach, round(center[1]) - reach
    canvas = Image.new("L", (2 * reach * FINE, 2 * reach * FINE))
    x, y = round((center[0] - left) * FINE), round((center[1] - top) * FINE)
    high = round(height * FINE)
    wide = high * COLUMNS // ROWS
    rows = [y - high // 2 + high * row // ROWS for row in range(ROWS + 1)]
    columns = [x - wide // 2 + wide * column // COLUMNS for column in range(COLUMNS + 1)]
    draw = ImageDraw.Draw(canvas)
    for row, column in zip(*np.nonzero(_cells(character)), strict=True):
        draw.rectangle((columns[column], rows[row], columns[column + 1] - 1, rows[row + 1] - 1), fill=255)
    picture.paste(ink, (left, top), canvas.reduce(FINE))


def _cells(character: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in GLYPHS[character]])
