"""VisionZip: CLS, dominant patches and contextual tokens."""

import pytest
import torch

from llava.errors import UserError
from llava.model.multimodal_encoder.reducers.visionzip import (
    VisionZip,
    contextual_tokens,
    seed_patches,
    split,
    zip_tokens,
)
from tests.model.reducers.golden import assert_agrees, unit_cases
from tests.model.reducers.synthetic import RandomImage


@pytest.mark.parametrize("case", unit_cases("visionzip"), ids=lambda case: case.id)
def test_the_tokens_are_the_authors(case):
    image = case.image()
    if "scores" in case.outputs:  # summed over heads
        assert_agrees("scores", image.cls_attention() * case.heads, case.outputs["scores"])
    choice = zip_tokens(image, **case.params)
    assert_agrees("kept", choice.kept, case.outputs["kept"])
    assert_agrees("tokens", choice.tokens, case.outputs["tokens"])
    rest = torch.tensor([one for one in range(len(image.patches)) if one not in choice.kept])
    _, seeds, joined = contextual_tokens(image.patches, image.keys(), rest, case.params["contextual"])
    assert_agrees("targets", seeds, case.outputs["targets"])
    assert_agrees("counts", joined, case.outputs["counts"])


@pytest.mark.parametrize(
    ("count", "parts"),
    [(32, (27, 5)), (64, (54, 10)), (128, (108, 20)), (192, (162, 30)), (16, (13, 3)), (4, (3, 1))],
)
def test_a_number_is_split_as_published(count, parts):
    assert split(count) == parts


@pytest.mark.parametrize("count", [4, 5, 16, 34, 35])
def test_the_number_of_tokens_is_met(count):
    image = RandomImage()
    choice = VisionZip.parse(str(count)).choose(image)
    dominant, contextual = split(count)
    assert len(choice.tokens) == count == dominant + contextual
    assert torch.equal(choice.tokens[0], image.cls())
    assert torch.equal(choice.tokens[1:dominant], image.patches[choice.kept])


def test_a_number_without_contextual_tokens_is_refused():
    with pytest.raises(UserError, match=r"VisionZip:3 asks for 3 of 36 visual tokens, .* at least 4"):
        VisionZip.parse("3").choose(RandomImage())


def test_seeds_stand_at_equal_steps_from_the_first():
    assert seed_patches(torch.arange(10, 21), 3).tolist() == [10, 13, 16]


def test_a_patch_joins_the_first_of_equal_seeds_and_a_seed_alone_stays_itself():
    patches, keys = torch.eye(5), torch.ones(5, 2)
    tokens, seeds, joined = contextual_tokens(patches, keys, torch.arange(1, 5), 2)
    assert seeds.tolist() == [1, 3]
    assert joined.tolist() == [2, 0]
    assert torch.equal(tokens, patches[[1, 3]] + torch.tensor([[0, 0, 0.5, 0, 0.5], [0] * 5]))
