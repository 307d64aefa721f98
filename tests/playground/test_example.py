from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from playground.shapes.world import CROWDED_SEED, EXAMPLE_SEED, EXAMPLE_SIZE, HELD_OUT, TRAIN, Scene

IMAGES = Path(__file__).parents[2] / "images"


def test_example_has_exactly_one_star_and_was_never_trained_on():
    assert [thing.shape for thing in Scene.from_seed(EXAMPLE_SEED).things].count("star") == 1
    assert EXAMPLE_SEED in HELD_OUT and EXAMPLE_SEED not in TRAIN


def test_crowded_example_has_five_shapes_in_five_colors_and_was_never_trained_on():
    things = Scene.from_seed(CROWDED_SEED).things
    assert len({thing.shape for thing in things}) == len({thing.color for thing in things}) == 5
    assert CROWDED_SEED in HELD_OUT and CROWDED_SEED not in TRAIN


@pytest.mark.parametrize(("file", "seed"), [("shapes.png", EXAMPLE_SEED), ("crowded.png", CROWDED_SEED)])
def test_example_is_the_picture_of_its_seed(file, seed):
    drawn = np.asarray(Scene.from_seed(seed).render(EXAMPLE_SIZE))
    assert np.array_equal(np.asarray(Image.open(IMAGES / file)), drawn)
