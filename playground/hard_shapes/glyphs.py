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


def draw_badge(picture: Image.Image, character: str, center: tuple[float, float], side: float) -> None:
    """Draw a white disc with a black character on it, anti-aliased by drawing it four times as large.

    Args:
        picture: Is drawn on, RGB.
        character: One of `CHARACTERS`.
        center: In pixels.
        side: Of the disc, in pixels.
    """
    reach = int(side / 2) + 2
    left, top = round(center[0]) - reach, round(center[1]) - reach
    canvas = 2 * reach * FINE
    x, y = round((center[0] - left) * FINE), round((center[1] - top) * FINE)
    disc = Image.new("L", (canvas, canvas))
    radius = round(side * FINE / 2)
    ImageDraw.Draw(disc).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    ink = Image.new("L", (canvas, canvas))
    height = round(side * FINE * 0.76)
    rows = [y - height // 2 + height * row // ROWS for row in range(ROWS + 1)]
    width = height * COLUMNS // ROWS
    columns = [x - width // 2 + width * column // COLUMNS for column in range(COLUMNS + 1)]
    draw = ImageDraw.Draw(ink)
    for row, column in zip(*np.nonzero(_cells(character)), strict=True):
        draw.rectangle((columns[column], rows[row], columns[column + 1] - 1, rows[row + 1] - 1), fill=255)
    picture.paste((250, 250, 250), (left, top), disc.reduce(FINE))
    picture.paste((15, 15, 15), (left, top), ink.reduce(FINE))


def _cells(character: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in GLYPHS[character]])
