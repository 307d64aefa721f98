"""HiPrune: anchors and buffers of a middle layer, registers of the selected one."""

import pytest
import torch

from llava.model.multimodal_encoder.reducers.hiprune import HiPrune, anchors_and_buffers, with_registers
from tests.model.reducers.golden import assert_agrees, unit_cases
from tests.model.reducers.synthetic import RandomImage


@pytest.mark.parametrize("case", unit_cases("hiprune"), ids=lambda case: case.id)
def test_the_choice_is_the_authors(case):
    image = case.image()
    middle, selected = image.received_attention()
    if "scores" in case.outputs:
        assert_agrees("scores", selected, case.outputs["scores"])
        assert_agrees("scores_mid", middle, case.outputs["scores_mid"])
    found = anchors_and_buffers(middle, **case.params)
    assert_agrees("anchors_and_buffers", found, case.outputs["anchors_and_buffers"])
    choice = HiPrune.parse(str(case.params["count"])).choose(image)
    assert choice.tokens is None
    assert_agrees("kept", choice.kept, case.outputs["kept"])


@pytest.mark.parametrize(
    ("anchor", "around"),
    [
        (0, [0, 1, 8]),  # what lies before the first patch is the first
        (8, [0, 7, 8, 9, 16]),  # left of a row's first is the last of the row above
        (27, [19, 26, 27, 28, 35]),
        (60, [52, 59, 60, 61, 63]),  # what lies below the last row is the last patch
        (63, [55, 62, 63]),
    ],
)
def test_buffers_are_the_four_around_and_stay_in_the_image(anchor, around):
    scores = torch.zeros(64)
    scores[anchor] = 1
    assert anchors_and_buffers(scores, 50).tolist() == around


@pytest.mark.parametrize(("count", "anchors"), [(16, 0), (64, 1), (128, 3), (192, 4)])
def test_anchors_are_a_fiftieth_of_the_budget(count, anchors):
    scores = torch.zeros(576)
    scores[[100, 200, 300, 400, 500]] = torch.tensor([5.0, 4, 3, 2, 1])
    assert len(anchors_and_buffers(scores, count)) == 5 * anchors


@pytest.mark.parametrize("count", [2, 24, 25, 26, 75, 99])
def test_the_number_of_tokens_is_met_whatever_the_anchors_share(count):
    kept = HiPrune.parse(str(count)).choose(RandomImage(side=10)).kept
    assert len(kept) == count
    assert torch.equal(kept, kept.unique())


def test_the_earlier_patch_wins_a_tie():
    equal = torch.ones(64)
    assert anchors_and_buffers(equal, 50).tolist() == [0, 1, 8]
    assert with_registers(equal, torch.tensor([0, 1, 8]), 5).tolist() == [0, 1, 2, 3, 8]
