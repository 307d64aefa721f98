"""The pictures that measurements ask about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from llava.errors import MissingFileError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
HEIGHT, WIDTH = 480, 640


def random_pictures(count: int) -> list[Image.Image]:
    """Draw pictures of noise, the same ones each time."""
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)) for _ in range(count)
    ]


def picture_paths(folder: str | Path) -> list[Path]:
    """Return the pictures of a folder, by name.

    Raises:
        MissingFileError: If it has none.
    """
    paths = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise MissingFileError(f"no images in {str(folder)!r} (looked for {', '.join(SUFFIXES)})")
    return paths
