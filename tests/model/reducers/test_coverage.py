"""Greedy facility location against the sums of its definition."""

import pytest
import torch

from llava.model.multimodal_encoder.reducers.coverage import pick_coverage

ROWS, PATCHES = 30, 20


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def by_definition(similarity, count, weights, factor, candidates):
    """One patch after the other, each judged by what all picked ones and it would cover."""
    similarity, weights, factor = similarity.double(), weights.double(), factor.double()
    order = []
    for _ in range(count):
        covered = similarity[:, order].clamp(min=0).amax(dim=1) if order else torch.zeros(len(similarity))
        gains = {
            patch: factor[patch] * (weights * (similarity[:, patch] - covered).clamp(min=0)).sum()
            for patch in range(similarity.shape[1])
            if candidates[patch] and patch not in order
        }
        order.append(max(gains, key=gains.get))
    return order


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("multiplied", [False, True])
@pytest.mark.parametrize("restricted", [False, True])
def test_the_largest_gain_is_picked(weighted, multiplied, restricted):
    similarity = draw(ROWS, PATCHES) * 2 - 1
    weights = draw(ROWS, seed=1) if weighted else torch.ones(ROWS)
    factor = draw(PATCHES, seed=2) if multiplied else torch.ones(PATCHES)
    candidates = draw(PATCHES, seed=3) > 0.4 if restricted else torch.ones(PATCHES, dtype=torch.bool)
    order = pick_coverage(
        similarity,
        8,
        weights=weights if weighted else None,
        factor=factor if multiplied else None,
        candidates=candidates if restricted else None,
    )
    assert order.tolist() == by_definition(similarity, 8, weights, factor, candidates)


def test_the_first_picks_do_not_depend_on_their_number():
    similarity = draw(ROWS, PATCHES)
    assert pick_coverage(similarity, 5).tolist() == pick_coverage(similarity, 12)[:5].tolist()


def test_the_earlier_patch_wins_a_tie():
    assert pick_coverage(torch.eye(6), 3).tolist() == [0, 1, 2]


def test_a_dissimilar_patch_covers_nothing():
    assert pick_coverage(torch.tensor([[-9.0, 0.1], [-9.0, 0.1]]), 1).tolist() == [1]


def test_patches_that_add_nothing_still_fill_the_count():
    assert pick_coverage(torch.ones(4, 6), 4).tolist() == [0, 1, 2, 3]
    assert pick_coverage(torch.zeros(4, 6), 6, factor=torch.zeros(6)).tolist() == [0, 1, 2, 3, 4, 5]


def test_others_than_candidates_come_last_and_in_raster_order():
    candidates = torch.tensor([False, True, False, True, False])
    similarity = torch.diag(torch.arange(5, 0, -1.0))
    assert pick_coverage(similarity, 4, candidates=candidates).tolist() == [1, 3, 0, 2]


def test_weights_decide_which_row_is_covered():
    assert pick_coverage(torch.eye(3), 2, weights=torch.tensor([0.1, 0.3, 0.2])).tolist() == [1, 2]


def test_half_precision_is_scored_in_float32():
    similarity = draw(ROWS, PATCHES).half()
    assert pick_coverage(similarity, 8).tolist() == pick_coverage(similarity.float(), 8).tolist()


def test_a_choice_needs_no_gradient():
    similarity = draw(ROWS, PATCHES).requires_grad_()
    assert not pick_coverage(similarity * 2, 3).requires_grad
