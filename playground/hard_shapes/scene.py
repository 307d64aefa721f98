"""Pictures of many shapes, most of them small, that overlap and have characters written on them.

As in `playground.shapes.world`, a scene is a function of its seed alone, bit for bit, and so is its picture.
What is harder: 4 to 12 things instead of 2 to 5, nearly half of them on few of 24 x 24 patches, some partly
behind others, finer textures, and questions that need more than one look (`questions`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from playground.hard_shapes.glyphs import CHARACTERS, draw_character
from playground.shapes.world import COLORS, SHAPES, Thing, add_noise, background, paint, silhouette, stream

SIZE = 336
PATCH = 14
GRID = SIZE // PATCH

FEWEST_THINGS, MOST_THINGS = 4, 12
# Sides of bounding squares, in pixels of the 336-pixel picture, and how often a thing has one in that range:
# one or two patches, some patches, many.
SIZES = ((16, 24, 0.45), (25, 44, 0.33), (45, 80, 0.22))
# Bounding squares cover at most this share of a picture: TRIM's interquartile rule can keep at most a quarter
# of the patches.
COVERED = 0.18
# A character is written on a thing of at least this side, if at all, and is as high as a share of that side.
READABLE, WRITTEN, HEIGHT = 36, 0.7, 0.46
DARK, LIGHT = (15, 15, 15), (250, 250, 250)
LIGHT_COLORS = ("orange", "yellow", "pink")
# Of a thing's bounding square, at most this share lies behind another's; so many stand close to another one.
HIDDEN, CLOSE = 0.25, 0.3
TRIES = 60
# A patch shows a thing that covers this share of it, or of which no patch shows more; every thing covers some
# patch by the other share, more than any other thing does.
SHOWN_SHARE, SEEN = 0.3, 0.15

TRAIN = range(10_000_000, 20_000_000)
VALIDATION = range(1_100_000_000, 1_110_000_000)
HELD_OUT = range(1_200_000_000, 1_210_000_000)


@dataclass(frozen=True, slots=True)
class Scene:
    """What is in one picture.

    Attributes:
        seed: The seed it was made from, which also fixes the background and the shades.
        things: Its shapes from the top of the picture to the bottom.
    """

    seed: int
    things: tuple[Thing, ...]

    @classmethod
    def from_seed(cls, seed: int) -> Scene:
        """Make the scene of a seed: the first of its random numbers in which all things can be seen."""
        rng = stream(seed, "layout")
        while True:
            scene = cls._draw(seed, rng)
            if scene.is_visible():
                return scene

    @classmethod
    def _draw(cls, seed: int, rng: np.random.Generator) -> Scene:
        sizes = _sizes(int(rng.integers(FEWEST_THINGS, MOST_THINGS + 1)), rng)
        free = list(rng.permutation(len(CHARACTERS)))  # each at most once, so that it tells things apart
        things = []
        for size, (x, y) in zip(sizes, _places(sizes, rng), strict=True):
            shape = SHAPES[int(rng.integers(len(SHAPES)))]
            # There is nothing in the middle of a ring to write on.
            is_marked = size >= READABLE and shape != "ring" and rng.random() < WRITTEN
            things.append(
                Thing(
                    color=tuple(COLORS)[int(rng.integers(len(COLORS)))],
                    shape=shape,
                    x=x,
                    y=y,
                    size=size,
                    angle=float(rng.integers(-20, 21)),
                    character=CHARACTERS[free.pop()] if is_marked else "",
                )
            )
        return cls(seed, tuple(sorted(things, key=lambda thing: (thing.y, thing.x))))

    def render(self, size: int = SIZE) -> Image.Image:
        """Draw the picture, small things in front of large ones.

        Args:
            size: Side in pixels. What is in it does not depend on the size; its noise does.

        Returns:
            An RGB picture.
        """
        rng = stream(self.seed, "pixels")
        picture = background(rng, size, kinds=7)
        for index in self._from_back_to_front():
            thing = self.things[index]
            paint(picture, thing, rng, SIZE)
            if thing.character:
                scale = size / SIZE
                center = (thing.x * scale, thing.y * scale)
                ink = DARK if thing.color in LIGHT_COLORS else LIGHT
                draw_character(picture, thing.character, center, HEIGHT * thing.size * scale, ink)
        return add_noise(picture, rng)

    def coverage(self) -> NDArray[np.float32]:
        """Share of every patch that each thing visibly covers; (things, 24, 24)."""
        seen = np.ones((SIZE, SIZE), np.float32)
        shares = np.zeros((len(self.things), GRID, GRID), np.float32)
        for index in reversed(self._from_back_to_front()):
            mask, (left, top) = silhouette(self.things[index], SIZE, SIZE)
            # Of the picture, only the patches around the thing: the others would take most of the time.
            row, column = max(0, top) // PATCH, max(0, left) // PATCH
            bottom = min(GRID, -(-(top + mask.height) // PATCH))
            right = min(GRID, -(-(left + mask.width) // PATCH))
            rows, columns = slice(row * PATCH, bottom * PATCH), slice(column * PATCH, right * PATCH)
            around = Image.new("L", ((right - column) * PATCH, (bottom - row) * PATCH))
            around.paste(mask, (left - column * PATCH, top - row * PATCH))
            covered = np.asarray(around, np.float32) / 255
            cut = (covered * seen[rows, columns]).reshape(bottom - row, PATCH, right - column, PATCH)
            shares[index, row:bottom, column:right] = cut.mean(axis=(1, 3))
            seen[rows, columns] *= 1 - covered
        return shares

    def is_visible(self) -> bool:
        """Tell whether every thing is what some patch shows most of."""
        shares = self.coverage().reshape(len(self.things), -1)
        return set(shares.argmax(axis=0)[shares.max(axis=0) >= SEEN].tolist()) == set(range(len(shares)))

    def _from_back_to_front(self) -> list[int]:
        return sorted(range(len(self.things)), key=lambda index: -self.things[index].size)


def center_patches(
    things: Sequence[Thing], shares: NDArray[np.float32], patches: NDArray[np.int64]
) -> list[int]:
    """Return for each thing the patch nearest to its center, of those that show it: by them it is counted.

    The patch at the center itself may show the hole of a ring, or what stands in front.

    Args:
        things: T of them.
        shares: Of N patches that each thing covers, (T, N).
        patches: Which patches these are, in raster order, (N,).
    """
    front = shares.argmax(axis=0)
    rows, columns = np.divmod(patches, GRID)
    centers = []
    for index, thing in enumerate(things):
        own = shares[index] * (front == index)
        distance = np.square(columns * PATCH + PATCH / 2 - thing.x) + np.square(
            rows * PATCH + PATCH / 2 - thing.y
        )
        centers.append(int(patches[np.where(own >= min(SHOWN_SHARE, own.max()), distance, np.inf).argmin()]))
    return centers


def _sizes(count: int, rng: np.random.Generator) -> list[float]:
    """Choose sides, the largest first, and shrink the larger ones until all of them leave enough free."""
    bands = rng.choice(len(SIZES), count, p=[share for *_, share in SIZES])
    sizes = np.array([rng.integers(SIZES[band][0], SIZES[band][1] + 1) for band in bands], float)
    while (total := float(np.square(sizes).sum())) > COVERED * SIZE * SIZE:
        sizes = np.maximum(SIZES[0][0], sizes * min(0.98, math.sqrt(COVERED * SIZE * SIZE / total)))
    return sorted(sizes.round().tolist(), reverse=True)


def _places(sizes: Sequence[float], rng: np.random.Generator) -> list[tuple[float, float]]:
    """Choose centers: the first try of which little enough is hidden, else the one with the least."""
    places: list[tuple[float, float]] = []
    for size in sizes:
        first, last = math.ceil(size * 0.55), int(SIZE - size * 0.55)
        tries = rng.integers(first, last + 1, (TRIES, 2))
        if places and rng.random() < CLOSE:
            other = int(rng.integers(len(places)))
            reach = int(sizes[other] + size) // 2 + 4
            around = np.array(places[other], int) + rng.integers(-reach, reach + 1, (TRIES, 2))
            tries = np.concatenate([around[((around >= first) & (around <= last)).all(axis=1)], tries])
        best, least = (0.0, 0.0), math.inf
        for x, y in tries.tolist():
            hidden = max(
                (_overlap((x, y), size, place, other) for place, other in zip(places, sizes, strict=False)),
                default=0.0,
            )
            if hidden < least:
                best, least = (float(x), float(y)), hidden
            if hidden <= HIDDEN:
                break
        places.append(best)
    return places


def _overlap(first: tuple[float, float], side: float, second: tuple[float, float], other: float) -> float:
    """Return the share of the smaller of two squares that lies in the other one."""
    reach = (side + other) / 2
    wide, high = (min(max(0.0, reach - abs(a - b)), side, other) for a, b in zip(first, second, strict=True))
    return wide * high / min(side, other) ** 2
