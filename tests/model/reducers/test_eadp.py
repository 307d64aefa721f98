"""EADP against the authors' answers."""

import pytest
import torch

from llava.model.multimodal_encoder.reducers.base import cosine
from llava.model.multimodal_encoder.reducers.coverage import pick_coverage
from llava.model.multimodal_encoder.reducers.eadp import EADP, dense_relevance, position_relevance
from llava.model.multimodal_encoder.reducers.relevance import smooth
from llava.model.multimodal_encoder.token_reduction import Count
from tests.model.reducers.golden import assert_agrees, unit_cases


@pytest.mark.parametrize("case", unit_cases("eadp"), ids=lambda case: case.id)
def test_it_keeps_what_the_authors_code_keeps(case):
    image, count, power = case.image(), case.params["count"], case.params["beta"]
    relevance = dense_relevance(image.joint(), image.question(), image.question_states(), power)
    order = pick_coverage((cosine(image.projected()) + 1) / 2, count, weights=relevance)
    assert_agrees("order", order, case.outputs["order"])
    assert_agrees("kept", order, case.outputs["kept"])
    if "scores" in case.outputs:
        assert_agrees("scores", relevance, case.outputs["scores"])
    if power == 1:
        assert_agrees("kept", EADP(Count(count)).choose(image).kept, case.outputs["kept"])


def test_a_flat_map_stays_flat():
    assert torch.allclose(smooth(torch.full((5, 5), 0.3)), torch.full((5, 5), 0.3))


def test_a_point_spreads_as_a_gaussian_and_is_reflected_at_the_border():
    point = torch.zeros(4, 4)
    point[1, 1] = 1
    side = 1 / (2 + torch.tensor(0.5).exp())  # e^-0.5 / (1 + 2 e^-0.5)
    middle = 1 - 2 * side
    blurred = smooth(point)
    assert blurred[1, 1].item() == pytest.approx((middle * middle).item())
    assert blurred[2, 1].item() == pytest.approx((side * middle).item())
    assert blurred[2, 2].item() == pytest.approx((side * side).item())
    assert blurred[0, 0].item() == pytest.approx((4 * side * side).item())
    assert blurred[3, 3].item() == 0


def test_the_position_that_singles_out_a_patch_counts():
    joint = torch.eye(3)
    states = torch.ones(10, 3)  # of no preference, but for position 4, which opposes patch 2
    states[4] = torch.tensor([0.0, 0.0, -1.0])
    assert position_relevance(joint, states[:9]).argmax() == 2
    assert position_relevance(joint, states).tolist() == pytest.approx([0, 0, 1], abs=1e-5)


def test_patches_that_are_alike_to_the_question_are_all_relevant():
    generator = torch.Generator().manual_seed(0)
    question, states = torch.randn(1, 4, generator=generator), torch.randn(1, 9, 4, generator=generator)
    relevance = dense_relevance(torch.zeros(16, 4), question, states)
    assert torch.allclose(relevance, torch.ones(16))


def test_a_power_of_0_makes_all_patches_equally_relevant():
    image = unit_cases("eadp")[-1].image()
    assert dense_relevance(image.joint(), image.question(), image.question_states(), 0).eq(1).all()
