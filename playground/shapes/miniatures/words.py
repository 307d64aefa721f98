"""Words written into pictures, for the benchmarks that ask what is to be read there.

The letters are drawn here, because those that Pillow brings differ between its versions.
"""

import numpy as np
from PIL import Image

from playground.shapes.world import PATCH, SIZE, Scene

WORDS = ("LAMP", "STOP", "OPEN", "ROSE", "MELON", "STAMP", "PLAN", "NEST")

# Five rows from the top; the bits of a row are its five dots from the left.
LETTERS = {
    "A": (14, 17, 31, 17, 17),
    "E": (31, 16, 30, 16, 31),
    "L": (16, 16, 16, 16, 31),
    "M": (17, 27, 21, 17, 17),
    "N": (17, 25, 21, 19, 17),
    "O": (14, 17, 17, 17, 14),
    "P": (30, 17, 30, 16, 16),
    "R": (30, 17, 30, 18, 17),
    "S": (15, 16, 14, 1, 30),
    "T": (31, 4, 4, 4, 4),
}
# Pixels of a dot.
DOT = 3


def picture_with_word(scene: Scene, word: str) -> Image.Image:
    """Draw a scene with a sign in the corner where it covers least."""
    sign, picture = _sign(word), scene.render()
    right, bottom = SIZE - sign.width, SIZE - sign.height
    shown = scene.coverage().sum(0).repeat(PATCH, 0).repeat(PATCH, 1)  # (224, 224)

    def covered(corner: tuple[int, int]) -> float:
        x, y = corner
        return float(shown[y : y + sign.height, x : x + sign.width].sum())

    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom)]
    picture.paste(sign, min(corners, key=covered))
    return picture


def _sign(word: str) -> Image.Image:
    """Return a word in black on white, with a margin of one dot."""
    # A gap of one dot follows every letter; the last one is the margin on the right.
    rows = ["".join(f"{LETTERS[letter][row]:05b}0" for letter in word) for row in range(5)]
    dots = np.pad([[int(dot) for dot in row] for row in rows], ((1, 1), (1, 0)))  # (7, 6 * letters + 1)
    pixels = np.where(dots, 20, 245).astype(np.uint8).repeat(DOT, 0).repeat(DOT, 1)
    return Image.fromarray(pixels).convert("RGB")
