"""Visual tokens in prompts, by hand on small tensors."""

import pytest
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import UserError
from llava.model.splice import (
    drop_padding,
    expand_labels,
    expand_placeholders,
    fill_placeholders,
    find_padding,
    images_per_sample,
    match_texts,
    pad,
)

IMAGE = IMAGE_TOKEN_INDEX


def ids(*values):
    return torch.tensor(values)


def test_placeholders_become_as_many_as_their_image_has_tokens():
    assert expand_placeholders(ids(1, IMAGE, 5, IMAGE, 6), [2, 3]).tolist() == [
        *[1, IMAGE, IMAGE, 5, IMAGE, IMAGE, IMAGE, 6]
    ]
    assert expand_placeholders(ids(1, 2), []).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ([1, 5, 0, 0], [True, True, False, False]),
        ([0, 0, 1, 5], [False, False, True, True]),
        ([0, 1, IMAGE, 0], [False, True, True, False]),
        ([0, 0, 0, 0], [True, True, True, True]),  # of which nothing would be left
        ([1, 0, 5, 6], [True, True, True, True]),  # an unknown token in the text
    ],
)
def test_padding_is_told_by_its_id_at_the_ends_of_a_row(row, kept):
    mask = find_padding(torch.tensor([row, [0, 1, 2, 3]]), pad_id=0)
    assert mask.tolist() == [kept, [False, True, True, True]]


def test_a_batch_without_padding_has_no_mask():
    assert find_padding(torch.tensor([[1, 2], [3, IMAGE]]), pad_id=0) is None


def test_visual_tokens_are_never_learned():
    labels = expand_labels(ids(-100, 7, 5, 6), ids(1, IMAGE, 5, 6), [2])
    assert labels.tolist() == [-100, IGNORE_INDEX, IGNORE_INDEX, 5, 6]


def test_filling_writes_tokens_in_order_and_leaves_text_alone():
    row = ids(1, IMAGE, IMAGE, 5, IMAGE)
    text = torch.arange(10.0).reshape(5, 2)
    tokens = -torch.arange(1.0, 7.0).reshape(3, 2)
    filled = fill_placeholders(row, text, tokens)
    assert filled.tolist() == [[0, 1], [-1, -2], [-3, -4], [6, 7], [-5, -6]]


def test_truncation_in_the_middle_of_an_image_drops_its_last_rows():
    tokens = torch.tensor([[1.0], [2.0], [3.0]])
    filled = fill_placeholders(ids(1, IMAGE, IMAGE), torch.zeros(3, 1), tokens)
    assert filled.flatten().tolist() == [0, 1, 2]


def test_a_sample_without_a_picture_stays_tied_to_the_projector():
    """Under ZeRO-3 a rank that skips the projector would leave the others waiting for ever."""
    tokens = torch.ones(4, 2, requires_grad=True)
    filled = fill_placeholders(ids(1, 2), torch.zeros(2, 2), tokens[:0])
    filled.sum().backward()
    assert tokens.grad is not None
    assert not tokens.grad.any()


@pytest.mark.parametrize(
    ("placeholders", "images", "owned"),
    [
        ([1, 1], 2, [[0], [1]]),
        ([2, 1], 3, [[0, 1], [2]]),
        ([1, 0, 1], 2, [[0], [], [1]]),  # a picture for every placeholder
        ([1, 0, 1], 3, [[0], [], [2]]),  # LLaVA's convention: a sample without a placeholder brings a picture
        ([0, 0], 2, [[], []]),
        ([0, 0], 1, [[], []]),
        ([0], 0, [[]]),
        ([1], 2, [[0]]),  # what is left over is not shown, as in LLaVA
        ([2, 0], 4, [[0, 1], []]),
    ],
)
def test_which_images_belong_to_which_sample(placeholders, images, owned):
    rows = [torch.tensor([1] + [IMAGE] * count) for count in placeholders]
    assert [list(own) for own in images_per_sample(rows, images)] == owned


@pytest.mark.parametrize(("placeholders", "images"), [([1], 0), ([2], 1), ([2, 0, 0], 3)])
def test_a_mismatch_prints_both_numbers(placeholders, images):
    rows = [torch.tensor([1] + [IMAGE] * count) for count in placeholders]
    with pytest.raises(UserError, match=f"{sum(placeholders)} <image> placeholders.*{images} images"):
        images_per_sample(rows, images)


def test_questions_are_given_once_per_image_or_per_sample():
    shown = [range(0, 2), range(2, 2), range(3, 4)]  # image 2 belongs to the sample without a placeholder
    assert match_texts("q", shown, 4) == ["q"] * 4
    assert match_texts(["a", "b", "c", "d"], shown, 4) == ["a", "b", "c", "d"]
    assert match_texts(["a", "b", ["c", "d"]], shown, 4) == ["a", "a", "", ["c", "d"]]
    with pytest.raises(UserError, match="2 texts for 4 images in 3 prompts"):
        match_texts(["a", "b"], shown, 4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding(side):
    batch = pad([torch.ones(1, 2), torch.full((3, 2), 2.0)], [ids(7), ids(8, 9, 10)], side)
    first = [1, 0, 0] if side == "right" else [0, 0, 1]
    assert batch.attention_mask.int().tolist() == [first, [1, 1, 1]]
    assert batch.embeddings[0, :, 0].tolist() == [float(value) for value in first]
    assert batch.position_ids.tolist() == [[0, 0, 0], [0, 1, 2]]
    assert batch.labels[0].tolist() == [7 if value else IGNORE_INDEX for value in first]


def test_padding_sides_are_two():
    with pytest.raises(UserError, match="'middle'"):
        pad([torch.ones(1, 2)], [ids(7)], "middle")


def test_padding_is_dropped_by_the_mask_on_either_side():
    rows = drop_padding(torch.tensor([[1, 2, 0], [0, 3, 4]]), torch.tensor([[1, 1, 0], [0, 1, 1]]))
    assert [row.tolist() for row in rows] == [[1, 2], [3, 4]]
    assert [row.tolist() for row in drop_padding(torch.tensor([[1, 2]]), None)] == [[1, 2]]
