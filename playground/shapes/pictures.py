"""Training pictures on disk: one JPEG per seed, and how much of every patch each thing covers."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from playground.shapes.world import GRID, MOST_THINGS, TRAIN, Drawable, Scene


def picture_name(seed: int) -> str:
    """File name of the picture of a seed."""
    return f"{seed:08d}.jpg"


@dataclass(frozen=True, slots=True)
class World:
    """Where scenes come from.

    Attributes:
        seeds: Of the training pictures.
        from_seed: Makes the scene of a seed.
        most_things: In one scene.
        grid: Patches along a side.
    """

    seeds: range
    from_seed: Callable[[int], Drawable]
    most_things: int
    grid: int


SHAPES_WORLD = World(TRAIN, Scene.from_seed, MOST_THINGS, GRID)


def draw_pictures(folder: Path, count: int, world: World = SHAPES_WORLD) -> None:
    """Draw the first ``count`` training pictures; those that are there already stay.

    Args:
        folder: Receives the pictures and ``coverage.npy``, which is written last.
        count: How many.
        world: Where the scenes come from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with Pool(min(8, os.cpu_count() or 1)) as pool:
        shares = pool.imap(partial(_draw, folder, world), world.seeds[:count], chunksize=16)
        coverage = np.stack(list(tqdm(shares, total=count, desc="pictures", mininterval=5, disable=None)))
    partial_name = folder / "coverage.partial.npy"
    np.save(partial_name, coverage)
    partial_name.rename(folder / "coverage.npy")


def read_pictures(folder: Path, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Read pictures of these seeds; shape (len(seeds), side, side, 3)."""
    pictures = [np.asarray(Image.open(folder / picture_name(int(seed)))) for seed in seeds]
    return np.stack(pictures)


def coverage_of(scene: Drawable, world: World) -> NDArray[np.float32]:
    """A scene's coverage, filled up with nothing to the most things of its world; (things, grid, grid)."""
    shares = np.zeros((world.most_things, world.grid, world.grid), np.float32)
    own = scene.coverage()
    shares[: len(own)] = own
    return shares


def _draw(folder: Path, world: World, seed: int) -> NDArray[np.float16]:
    scene = world.from_seed(seed)
    path = folder / picture_name(seed)
    if not path.exists():
        unfinished = path.with_suffix(".partial")
        scene.render().save(unfinished, format="JPEG", quality=92)
        unfinished.rename(path)
    return coverage_of(scene, world).astype(np.float16)
