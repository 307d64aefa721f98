"""VisPruner: important patches, and others that differ."""

import pytest
import torch

from llava.model.multimodal_encoder.reducers.base import cosine
from llava.model.multimodal_encoder.reducers.vispruner import VisPruner, important_and_diverse, thin_out
from tests.model.reducers.golden import assert_agrees, unit_cases
from tests.model.reducers.synthetic import RandomImage


@pytest.mark.parametrize("case", unit_cases("vispruner"), ids=lambda case: case.id)
def test_the_choice_is_the_authors(case):
    image = case.image()
    if "scores" in case.outputs:
        assert_agrees("scores", image.cls_attention(), case.outputs["scores"])
    important, diverse = important_and_diverse(image.cls_attention(), image.patches, **case.params)
    assert_agrees("important", important.sort().values, case.outputs["important"])
    assert_agrees("kept", torch.cat([important, diverse]), case.outputs["kept"])
    if case.params["important_ratio"] == 0.5:
        choice = VisPruner.parse(str(case.params["count"])).choose(image)
        assert choice.tokens is None
        assert choice.kept.tolist() == case.outputs["kept"].tolist()


@pytest.mark.parametrize("side", [3, 5, 6])
@pytest.mark.parametrize("count", [2, 3, 7, 8])
def test_odd_rounds_and_few_diverse_patches_work_too(side, count):
    kept = VisPruner.parse(str(count)).choose(RandomImage(side=side)).kept
    assert len(kept.unique()) == count
    assert torch.equal(kept, kept.sort().values)


@pytest.mark.parametrize(("ratio", "important"), [(0.0, 0), (1.0, 10), (0.9, 9)])
def test_any_share_may_be_important(ratio, important):
    image = RandomImage()
    found, diverse = important_and_diverse(image.cls_attention(), image.patches, 10, ratio)
    assert (len(found), len(diverse)) == (important, 10 - important)
    assert len(torch.cat([found, diverse]).unique()) == 10


def test_a_round_removes_what_is_most_like_one_between_and_sorts_the_others():
    similarity = torch.zeros(6, 6)
    similarity[0, 1], similarity[2, 3], similarity[4, 5] = 0.5, 0.9, 0.7
    assert thin_out(similarity, torch.arange(6), 5).tolist() == [4, 0, 1, 3, 5]
    assert thin_out(similarity, torch.arange(6), 4).tolist() == [0, 1, 3, 5]


def test_the_earlier_of_equally_similar_patches_goes():
    left = thin_out(torch.ones(200, 200), torch.arange(200), 192).tolist()
    assert left == [*range(16, 200, 2), *range(1, 200, 2)]


def test_equal_attention_leaves_patches_in_raster_order():
    image = RandomImage(side=3)
    important, _ = important_and_diverse(torch.ones(9), image.patches, 4)
    assert important.tolist() == [0, 1]


def test_a_round_is_of_eight_at_most():
    similarity = cosine(RandomImage(side=6).patches)
    once = thin_out(similarity, torch.arange(36), 28)
    assert thin_out(similarity, once, 20).tolist() == thin_out(similarity, torch.arange(36), 20).tolist()
