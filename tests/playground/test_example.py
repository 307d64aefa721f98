from pathlib import Path

import numpy as np
from PIL import Image

from playground.shapes.world import EXAMPLE_SEED, EXAMPLE_SIZE, HELD_OUT, TRAIN, Scene

EXAMPLE = Path(__file__).parents[2] / "images" / "shapes.png"


def test_example_has_exactly_one_star_and_was_never_trained_on():
    assert [thing.shape for thing in Scene.from_seed(EXAMPLE_SEED).things].count("star") == 1
    assert EXAMPLE_SEED in HELD_OUT and EXAMPLE_SEED not in TRAIN


def test_example_is_the_picture_of_its_seed():
    drawn = np.asarray(Scene.from_seed(EXAMPLE_SEED).render(EXAMPLE_SIZE))
    assert np.array_equal(np.asarray(Image.open(EXAMPLE)), drawn)
