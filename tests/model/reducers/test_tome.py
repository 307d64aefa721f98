"""ToMe: pairs of similar tokens become their mean."""

import pytest
import torch

from llava.model.multimodal_encoder.reducers.tome import ToMe, average, match, merge_to, total
from tests.model.reducers.golden import assert_agrees, unit_cases
from tests.model.reducers.synthetic import RandomImage


@pytest.mark.parametrize("case", unit_cases("tome_step"), ids=lambda case: case.id)
def test_a_step_is_the_authors(case):
    image, r = case.image(), case.params["r"]
    patches = len(image.patches)
    places, ones = match(image.keys(), r), torch.ones(patches)
    assert_agrees("group", places, case.outputs["group"])
    assert_agrees("tokens", average(image.patches, ones, places, patches - r), case.outputs["tokens"])
    assert_agrees("size", total(ones, places, patches - r), case.outputs["size"])


@pytest.mark.parametrize("case", unit_cases("tome_output"), ids=lambda case: case.id)
def test_steps_follow_each_other_as_with_the_authors_parts(case):
    image, count = case.image(), case.params["count"]
    tokens, sizes, group = merge_to(image.patches, image.keys(), count)
    assert_agrees("tokens", tokens, case.outputs["tokens"])
    assert_agrees("size", sizes, case.outputs["size"])
    assert_agrees("group", group, case.outputs["group"])
    choice = ToMe.parse(str(count)).choose(image)
    assert torch.equal(choice.tokens, tokens)
    alone = [one for one, place in enumerate(group.tolist()) if group.tolist().count(place) == 1]
    assert choice.kept.tolist() == alone


@pytest.mark.parametrize("side", [5, 6])
@pytest.mark.parametrize("count", [1, 2, 13, 24])
def test_every_token_is_the_mean_of_its_patches(side, count):
    image = RandomImage(side=side)
    tokens, sizes, group = merge_to(image.patches, image.keys(), count)
    assert len(tokens) == count
    for place in range(count):
        own = image.patches[group == place]
        assert len(own) == sizes[place]
        assert torch.allclose(tokens[place], own.mean(dim=0), atol=1e-5)


def test_the_most_similar_pair_merges_and_the_others_are_sorted():
    metric = torch.tensor([[1.0, 0.5], [1, 0], [1, 0.1], [0, 1], [1, 0.2], [1, -1]])
    assert match(metric, 1).tolist() == [1, 2, 2, 3, 0, 4]


def test_the_earlier_of_equals_merges_and_into_the_earlier():
    assert match(torch.ones(6, 2), 2).tolist() == [1, 1, 1, 2, 0, 3]
