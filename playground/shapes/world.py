"""The synthetic shapes dataset: pictures of a few colored shapes on varied backgrounds, made from a seed.

A `Scene` says what is in a picture; `Scene.render` draws it. Both are functions of the seed alone, bit for
bit: randomness comes from numpy's PCG64, pixels from integer drawing and from additions and multiplications
only (no transcendental function touches a pixel, so no mathematics library can change one).

The seeds of what a model is trained on and of what it is measured on come from disjoint ranges (`TRAIN`,
`HELD_OUT`).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from playground.shapes.outlines import Outline, outlines

SIZE = 224
PATCH = 14
GRID = SIZE // PATCH

# Name -> RGB. Hues far apart, because backgrounds are tinted and every thing's color is jittered.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (245, 140, 25),
    "yellow": (245, 225, 45),
    "green": (35, 150, 60),
    "blue": (35, 75, 215),
    "purple": (125, 45, 175),
    "pink": (250, 140, 190),
    "black": (20, 20, 24),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring")

# Side of a thing's bounding square, in pixels of the 224-pixel picture.
SMALLEST, LARGEST = 30, 75
# Bounding squares cover at most this share of a picture: TRIM's interquartile rule can keep at most a quarter
# of the patches, so a question about everything in the picture must be about less than that.
COVERED = 0.20
MOST_THINGS = 5

TRAIN = range(0, 10_000_000)
HELD_OUT = range(1_000_000_000, 1_010_000_000)
# The picture in images/shapes.png, drawn larger than the model reads it; it has exactly one star.
EXAMPLE_SEED, EXAMPLE_SIZE = HELD_OUT[24], 448
# The one in images/crowded.png and, with two questions, in images/overview.png: five shapes in five colors.
CROWDED_SEED = HELD_OUT[2460]


@dataclass(frozen=True, slots=True)
class Thing:
    """One colored shape.

    Attributes:
        color: A name in `COLORS`.
        shape: A name in `SHAPES`.
        x: Horizontal center, in pixels from the left of the 224-pixel picture.
        y: Vertical center, in pixels from the top.
        size: Side of its bounding square before turning, in pixels.
        angle: Counterclockwise turn, in degrees.
        character: What is written on it, in the pictures of `playground.hard_shapes`.
    """

    color: str
    shape: str
    x: float
    y: float
    size: float
    angle: float
    character: str = ""

    @property
    def name(self) -> str:
        """Color and shape, such as ``red star``."""
        return f"{self.color} {self.shape}"


class Drawable(Protocol):
    """A scene of this or another world."""

    @property
    def seed(self) -> int:
        """It was made from."""

    @property
    def things(self) -> tuple[Thing, ...]:
        """Its shapes from the top of the picture to the bottom."""

    def render(self) -> Image.Image:
        """Draw the picture."""

    def coverage(self) -> NDArray[np.float32]:
        """Share of every patch that each thing covers, (things, rows, columns)."""


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
    def from_seed(cls, seed: int) -> "Scene":
        """Make the scene of a seed: 2 to 5 things of varied size that hardly overlap."""
        rng = stream(seed, "layout")
        count = int(rng.integers(2, MOST_THINGS + 1))
        sizes = rng.integers(SMALLEST, LARGEST + 1, count).astype(float)
        budget = COVERED * SIZE * SIZE
        # Shrink whatever is too much; a thing that is small already stays as it is.
        while (total := float(np.square(sizes).sum())) > budget:
            sizes = np.maximum(SMALLEST, sizes * min(0.98, math.sqrt(budget / total)))
        places = _free_places(sizes, rng)
        things = [
            Thing(
                color=_pick(tuple(COLORS), rng),
                shape=_pick(SHAPES, rng),
                x=x,
                y=y,
                size=float(size),
                angle=float(rng.integers(-20, 21)),
            )
            for size, (x, y) in zip(sizes, places, strict=True)
        ]
        return cls(seed, tuple(sorted(things, key=lambda thing: (thing.y, thing.x))))

    def render(self, size: int = SIZE) -> Image.Image:
        """Draw the picture.

        Args:
            size: Side in pixels. What is in it does not depend on the size; its noise does.

        Returns:
            An RGB picture.
        """
        rng = stream(self.seed, "pixels")
        picture = background(rng, size)
        for thing in self.things:
            paint(picture, thing, rng)
        return add_noise(picture, rng)

    def coverage(self) -> NDArray[np.float32]:
        """Share of every patch that each thing covers, later things in front; shape (things, 16, 16)."""
        seen = np.ones((SIZE, SIZE), np.float32)
        shares = np.zeros((len(self.things), GRID, GRID), np.float32)
        for index in reversed(range(len(self.things))):
            whole = Image.new("L", (SIZE, SIZE))
            whole.paste(*silhouette(self.things[index], SIZE))
            mask = np.asarray(whole, np.float32) / 255
            shares[index] = (mask * seen).reshape(GRID, PATCH, GRID, PATCH).mean(axis=(1, 3))
            seen *= 1 - mask
        return shares


def stream(seed: int, purpose: Literal["layout", "pixels", "words"]) -> np.random.Generator:
    """Random numbers of one seed for one purpose, so that a change in one leaves the others alone."""
    return np.random.Generator(np.random.PCG64([seed, ("layout", "pixels", "words").index(purpose)]))


def _pick(names: tuple[str, ...], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]


def _free_places(sizes: NDArray[np.float64], rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centers for things of these sizes: the roomiest of some tries, so that overlap is small and rare."""
    places: list[tuple[float, float]] = []
    for size in sizes:
        margin = size * 0.55
        tries = [(float(x), float(y)) for x, y in rng.integers(int(margin), int(SIZE - margin), (30, 2))]

        def room(place: tuple[float, float], size: float = size) -> float:
            gaps = [
                max(abs(place[0] - x), abs(place[1] - y)) - (size + sizes[other]) / 2
                for other, (x, y) in enumerate(places)
            ]
            # Beyond 6 pixels more room is no better: places should vary, not avoid each other.
            return min([6.0, *gaps])

        places.append(max(tries, key=room))
    return places


def background(rng: np.random.Generator, size: int, kinds: int = 5) -> Image.Image:
    """Draw a tinted ground, paler than any thing: plain, a gradient, stripes, checks or blotches.

    Args:
        rng: Chooses.
        size: Side in pixels.
        kinds: With 7 it may also be fine blotches or dots.
    """
    tints = (rng.integers(110, 236, 3) * 0.35 + rng.integers(110, 236) * 0.65).astype(np.float32)
    other = tints + rng.integers(-30, 31, 3).astype(np.float32)
    unit = np.arange(size, dtype=np.float32) / np.float32(size)
    along, across = (rng.integers(-10, 11, 2) / 10).tolist()
    slope = unit[None, :] * along + unit[:, None] * across  # (size, size)
    kind = int(rng.integers(kinds))
    weight: NDArray[Any]  # (size, size)
    if kind == 0:
        weight = np.zeros((size, size), np.float32)
    elif kind == 1:
        weight = slope
    elif kind == 2:
        weight = np.abs((slope * rng.integers(4, 14)) % 1 - 0.5) * 2
    elif kind == 3:
        cells = int(rng.integers(3, 12))
        cell = (unit * cells).astype(int)
        weight = ((cell[None, :] + cell[:, None]) % 2).astype(np.float32) * np.float32(0.7)
    elif kind == 6:
        cells = int(rng.integers(8, 24))
        offset = (unit * cells) % 1 - np.float32(0.5)
        weight = (np.square(offset)[None, :] + np.square(offset)[:, None] < 0.08).astype(np.float32)
    else:
        coarseness = 6 if kind == 4 else 32
        coarse = Image.fromarray(rng.integers(0, 256, (coarseness, coarseness), dtype=np.uint8))
        weight = np.asarray(coarse.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255
    ground = tints + weight[..., None] * (other - tints)  # (size, size, 3)
    return Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))


def add_noise(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Add grain, and light that differs from picture to picture."""
    strength = int(rng.integers(2, 26))
    light = int(rng.integers(-12, 13))
    pixels = np.asarray(picture, dtype=np.int16)
    grain = rng.integers(0, 256, pixels.shape, dtype=np.uint8).astype(np.int16)
    grain = (grain - 128) * strength // 128 + light
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def silhouette(thing: Thing, size: int, frame: int = SIZE) -> tuple[Image.Image, tuple[int, int]]:
    """Return an 8-bit mask of a thing, anti-aliased by drawing it four times as large, and its corner.

    Args:
        thing: What is drawn.
        size: Side of the picture, in pixels.
        frame: Side of the picture in which the thing's place and size are meant.
    """
    fine = 4
    scale = size / frame
    reach = math.ceil(thing.size * scale * 0.75) + 1
    left, top = round(thing.x * scale) - reach, round(thing.y * scale) - reach
    mask = Image.new("L", (2 * reach * fine, 2 * reach * fine))
    draw = ImageDraw.Draw(mask)
    for outline, ink in outlines(thing.shape):
        draw.polygon(_placed(outline, thing, scale * fine, (left * fine, top * fine)), fill=ink)
    return mask.reduce(fine), (left, top)


def paint(picture: Image.Image, thing: Thing, rng: np.random.Generator, frame: int = SIZE) -> None:
    """Draw a thing in a shade of its color onto a square picture; see `silhouette`."""
    shade = tuple(int(np.clip(part + rng.integers(-14, 15), 0, 255)) for part in COLORS[thing.color])
    mask, corner = silhouette(thing, picture.width, frame)
    picture.paste(shade, corner, mask)


def _placed(outline: Outline, thing: Thing, scale: float, origin: tuple[int, int]) -> list[tuple[int, int]]:
    """Turn, size and move an outline of the unit square around 0; whole numbers, so that drawing is exact."""
    cosine, sine = math.cos(math.radians(thing.angle)), math.sin(math.radians(thing.angle))
    side = thing.size * scale
    return [
        (
            round(thing.x * scale + side * (u * cosine + v * sine)) - origin[0],
            round(thing.y * scale + side * (v * cosine - u * sine)) - origin[1],
        )
        for u, v in outline
    ]
