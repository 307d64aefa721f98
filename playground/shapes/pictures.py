"""Training pictures on disk: one JPEG per seed, and how much of every patch each thing covers."""

import os
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from playground.shapes.world import GRID, MOST_THINGS, TRAIN, Scene


def picture_name(seed: int) -> str:
    """File name of the picture of a seed."""
    return f"{seed:08d}.jpg"


def draw_pictures(folder: Path, count: int) -> None:
    """Draw the first ``count`` training pictures; those that are there already stay.

    Args:
        folder: Receives the pictures and ``coverage.npy``, which is written last.
        count: How many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with Pool(min(8, os.cpu_count() or 1)) as pool:
        shares = pool.imap(partial(_draw, folder), TRAIN[:count], chunksize=16)
        coverage = np.stack(list(tqdm(shares, total=count, desc="pictures", mininterval=5, disable=None)))
    partial_name = folder / "coverage.partial.npy"
    np.save(partial_name, coverage)
    partial_name.rename(folder / "coverage.npy")


def read_pictures(folder: Path, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Read pictures of these seeds; shape (len(seeds), 224, 224, 3)."""
    pictures = [np.asarray(Image.open(folder / picture_name(int(seed)))) for seed in seeds]
    return np.stack(pictures)


def coverage_of(scene: Scene) -> NDArray[np.float32]:
    """A scene's `Scene.coverage`, filled up with nothing to `MOST_THINGS` things; (5, 16, 16)."""
    shares = np.zeros((MOST_THINGS, GRID, GRID), np.float32)
    shares[: len(scene.things)] = scene.coverage()
    return shares


def _draw(folder: Path, seed: int) -> NDArray[np.float16]:
    scene = Scene.from_seed(seed)
    path = folder / picture_name(seed)
    if not path.exists():
        unfinished = path.with_suffix(".partial")
        scene.render().save(unfinished, format="JPEG", quality=92)
        unfinished.rename(path)
    return coverage_of(scene).astype(np.float16)
