"""SCOPE against the authors' answers."""

from dataclasses import replace

import pytest
import torch

from llava.model.multimodal_encoder.reducers.base import cosine
from llava.model.multimodal_encoder.reducers.coverage import pick_coverage
from llava.model.multimodal_encoder.reducers.scope import SCOPE
from llava.model.multimodal_encoder.token_reduction import Count
from tests.model.reducers.golden import assert_agrees, unit_cases


@pytest.mark.parametrize("case", unit_cases("scope"), ids=lambda case: case.id)
def test_it_keeps_what_the_authors_code_keeps(case):
    image, count = case.image(), case.params["count"]
    saliency = image.cls_attention() * case.heads  # theirs is the sum over heads
    assert_agrees(
        "order", pick_coverage(cosine(image.patches), count, factor=saliency), case.outputs["order"]
    )
    assert_agrees("kept", SCOPE(Count(count)).choose(image).kept, case.outputs["kept"])
    if "scores" in case.outputs:
        assert_agrees("scores", saliency, case.outputs["scores"])


def test_attention_alone_decides_among_patches_that_have_nothing_in_common():
    case = unit_cases("scope")[-1]
    hidden = torch.cat([torch.zeros(1, 64), torch.eye(64)])
    image = replace(case, inputs=case.inputs | {"hidden": hidden}).image()
    expected = image.cls_attention().argsort(descending=True)[:5].sort().values
    assert SCOPE(Count(5)).choose(image).kept.tolist() == expected.tolist()
