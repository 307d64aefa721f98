"""CDPruner against the authors' answers, and where theirs ends."""

import pytest
import torch

from llava.model.multimodal_encoder.reducers.base import cosine
from llava.model.multimodal_encoder.reducers.cdpruner import CDPruner, pick_determinant
from llava.model.multimodal_encoder.reducers.relevance import question_relevance
from llava.model.multimodal_encoder.token_reduction import Count
from tests.model.reducers.golden import assert_agrees, unit_cases


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", unit_cases("cdpruner"), ids=lambda case: case.id)
def test_it_keeps_what_the_authors_code_keeps(case):
    image, count = case.image(), case.params["count"]
    relevance = question_relevance(image.joint(), image.question())
    order = pick_determinant(cosine(image.projected()), relevance, count)
    assert_agrees("order", order, case.outputs["order"])
    assert_agrees("kept", CDPruner(Count(count)).choose(image).kept, case.outputs["kept"])
    if "scores" in case.outputs:
        assert_agrees("scores", relevance, case.outputs["scores"])


def test_each_pick_enlarges_the_determinant_most():
    similarity, relevance = cosine(draw(12, 30)), torch.linspace(0.2, 1, 12)
    kernel = (relevance.unsqueeze(1) * similarity * relevance).double()
    order = pick_determinant(similarity, relevance, 6).tolist()
    for step, pick in enumerate(order):
        determinants = {
            patch: torch.linalg.det(kernel[[*order[:step], patch]][:, [*order[:step], patch]])
            for patch in range(12)
            if patch not in order[:step]
        }
        assert pick == max(determinants, key=determinants.get)


@pytest.mark.parametrize("rank", [4, 16])
def test_the_most_relevant_follow_when_the_picked_span_all(rank):
    relevance = draw(64, seed=1).sigmoid()
    order = pick_determinant(cosine(draw(64, rank)), relevance, 40).tolist()
    others = [patch for patch in range(64) if patch not in order[:rank]]
    assert order[rank:] == sorted(others, key=lambda patch: -relevance[patch])[: 40 - rank]


def test_equal_patches_follow_by_relevance_the_earlier_first():
    similarity = cosine(torch.eye(3).repeat(4, 1))
    relevance = torch.tensor([0.5, 0.5, 0.5, 0.9, 0.9, 0.9, 0.2, 0.2, 0.2, 0.9, 0.9, 0.9])
    order = pick_determinant(similarity, relevance, 9).tolist()
    assert order == [3, 4, 5, 9, 10, 11, 0, 1, 2]


def test_patches_that_are_alike_to_the_question_are_all_relevant():
    relevance = question_relevance(torch.zeros(9, 4), draw(2, 4))
    assert torch.equal(relevance, torch.ones(9))


def test_the_less_similar_a_patch_is_to_the_question_the_more_relevant_it_is():
    relevance = question_relevance(
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([[5.0, 0.0]])
    )
    assert torch.allclose(relevance, torch.tensor([0.0, 0.5, 1.0]), atol=1e-5)
    assert relevance.min() > 0


def test_the_earlier_patch_wins_a_tie():
    assert pick_determinant(torch.eye(5), torch.ones(5), 3).tolist() == [0, 1, 2]
