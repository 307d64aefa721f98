"""The kept patches are drawn where the model saw them: in the padded square, or in the middle crop."""

import numpy as np
from PIL import Image

from llava.visualize import OUTLINE, draw_kept

GRAY = (100, 100, 100)


def kinds(drawn: Image.Image) -> np.ndarray:
    """Per pixel: ``k`` untouched, ``o`` outline, ``d`` dimmed."""
    pixels = np.asarray(drawn).astype(int)
    result = np.full(pixels.shape[:2], "d")
    result[(pixels == GRAY).all(-1)] = "k"
    result[(pixels == OUTLINE).all(-1)] = "o"
    return result


def test_a_kept_patch_is_outlined_and_the_others_are_dimmed():
    kept = np.zeros((2, 2), bool)
    kept[0, 1] = True
    drawn = kinds(draw_kept(Image.new("RGB", (8, 8), GRAY), kept))
    assert (drawn[:4, 5:7][1:3] == "k").all()
    assert (drawn[0, 4:] == "o").all() and (drawn[:4, 7] == "o").all()
    assert (drawn[4:] == "d").all() and (drawn[:4, :4] == "d").all()


def test_a_wide_picture_shows_the_middle_rows_of_its_padded_square():
    kept = np.zeros((4, 4), bool)
    kept[0, 0] = True  # wholly in the padding
    kept[1, 0] = True  # the top left corner of the picture
    drawn = kinds(draw_kept(Image.new("RGB", (40, 20), GRAY), kept, "pad"))
    assert drawn.shape == (20, 40)
    assert (drawn[1:9, 1:9] == "k").all()
    assert (drawn[10:] == "d").all() and (drawn[:, 10:] == "d").all()


def test_a_tall_picture_shows_the_middle_columns_of_its_padded_square():
    kept = np.zeros((4, 4), bool)
    kept[3, 2] = True
    drawn = kinds(draw_kept(Image.new("RGB", (20, 40), GRAY), kept, "pad"))
    assert (drawn[31:39, 11:19] == "k").all()
    assert (drawn[:30] == "d").all() and (drawn[:, :10] == "d").all()


def test_without_padding_the_middle_square_was_seen():
    drawn = kinds(draw_kept(Image.new("RGB", (40, 20), GRAY), np.ones((1, 1), bool), None))
    assert (drawn[1:19, 11:29] == "k").all()
    assert (drawn[:, :10] == "d").all() and (drawn[:, 30:] == "d").all()


def test_an_overview_of_anyres_covers_the_whole_picture():
    kept = np.zeros((2, 2), bool)
    kept[1, 1] = True
    drawn = kinds(draw_kept(Image.new("RGB", (40, 20), GRAY), kept, "anyres_max_9"))
    assert (drawn[11:19, 21:39] == "k").all()
    assert (drawn[:10] == "d").all() and (drawn[:, :20] == "d").all()


def test_sizes_that_do_not_divide_and_tiny_pictures_are_drawn():
    for size in ((1, 1), (3, 7), (101, 57)):
        for aspect in ("pad", "anyres", None):
            assert draw_kept(Image.new("L", size), np.ones((24, 24), bool), aspect).size == size


def test_the_picture_itself_stays_as_it_was():
    image = Image.new("RGB", (8, 8), GRAY)
    draw_kept(image, [[True, False], [False, False]])
    assert (np.asarray(image) == GRAY).all()
