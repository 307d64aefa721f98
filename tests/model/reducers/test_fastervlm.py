"""FasterVLM: the patches that CLS attends to most."""

import pytest
import torch

from llava.model.multimodal_encoder.reducers.fastervlm import FasterVLM
from tests.model.reducers.golden import assert_agrees, unit_cases
from tests.model.reducers.synthetic import RandomImage


@pytest.mark.parametrize("case", unit_cases("fastervlm"), ids=lambda case: case.id)
def test_the_choice_is_the_authors(case):
    image = case.image()
    if "scores" in case.outputs:
        assert_agrees("scores", image.cls_attention(), case.outputs["scores"])
    choice = FasterVLM.parse(str(case.params["count"])).choose(image)
    assert choice.tokens is None
    assert_agrees("kept", choice.kept, case.outputs["kept"])


def test_the_earlier_patch_wins_a_tie():
    attention = torch.tensor([1.0, 3, 2, 2, 2, 1, 1, 1, 1])
    choice = FasterVLM.parse("3").choose(RandomImage(side=3).replace(attention=attention))
    assert choice.kept.tolist() == [1, 2, 3]
