"""DivPrune against the authors' answers."""

import pytest
import torch

from llava.model.multimodal_encoder.reducers.divprune import DivPrune, pick_diverse
from llava.model.multimodal_encoder.token_reduction import Count
from tests.model.reducers.golden import assert_agrees, unit_cases


@pytest.mark.parametrize("case", unit_cases("divprune"), ids=lambda case: case.id)
def test_it_keeps_what_the_authors_code_keeps(case):
    image, patches = case.image(), case.side**2
    count = round(case.params["ratio"] * patches)
    assert_agrees("order", pick_diverse(image.projected(), count), case.outputs["order"])
    assert_agrees("kept", DivPrune(Count(count)).choose(image).kept, case.outputs["kept"])


def test_the_first_is_farthest_from_its_nearest_and_the_next_from_it():
    angles = torch.tensor([0.0, 1.0, 10.0, 50.0, 100.0, 101.0]).deg2rad()
    # 50 has its nearest at 40 degrees; then 101 is 51 away from it, 0 is 50 away, and 10 is 10 from 0.
    assert pick_diverse(torch.stack([angles.cos(), angles.sin()], dim=1), 4).tolist() == [3, 5, 0, 2]


def test_the_earlier_patch_wins_a_tie():
    assert pick_diverse(torch.eye(5), 3).tolist() == [0, 1, 2]


def test_equal_patches_come_after_all_different_ones_and_none_twice():
    different = torch.eye(4)
    order = pick_diverse(torch.cat([different, different, different]), 12).tolist()
    assert order[:4] == [0, 1, 2, 3]
    assert sorted(order) == list(range(12))
