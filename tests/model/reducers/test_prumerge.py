"""PruMerge and PruMerge+: outliers, a grid, and neighbors added."""

import pytest
import torch

from llava.errors import UserError
from llava.model.multimodal_encoder.reducers.prumerge import (
    PruMerge,
    PruMergePlus,
    fixed_grid,
    has_fixed_grid,
    most_attended,
    outlier_count,
    with_fixed_grid,
    with_grid,
)
from tests.model.reducers.golden import assert_agrees, unit_cases
from tests.model.reducers.synthetic import RandomImage

METHODS = {"prumerge": PruMerge, "prumerge_plus": PruMergePlus}
CASES = [(method, case) for name, method in METHODS.items() for case in unit_cases(name)]


def setting(method, case):
    """Return what stands behind the colon: -1, or the patches that stay beside the last token."""
    if case.params["ratio"] is None:
        return "-1"
    return str(int(len(case.image().patches) * case.params["ratio"]) * (2 if method is PruMergePlus else 1))


@pytest.mark.parametrize(("method", "case"), [pytest.param(*one, id=one[1].id) for one in CASES])
def test_the_tokens_are_the_authors(method, case):
    image = case.image()
    if "scores" in case.outputs:
        assert_agrees("scores", image.next_layer()[0], case.outputs["scores"])
    choice = method.parse(setting(method, case)).choose(image)
    assert_agrees("kept", choice.kept, case.outputs["kept"])
    assert_agrees("tokens", choice.tokens, case.outputs["tokens"])


@pytest.mark.parametrize(("method", "case"), [pytest.param(*one, id=one[1].id) for one in CASES])
def test_the_order_is_the_authors(method, case):
    scores, _ = case.image().next_layer()
    if method is PruMerge:
        adaptive = case.params["ratio"] is None
        chosen = most_attended(scores, outlier_count(scores) if adaptive else int(setting(method, case)))
    elif case.params["ratio"] is None:
        chosen = with_grid(scores, outlier_count(scores))
    else:
        chosen = with_fixed_grid(scores, int(setting(method, case)))
    assert_agrees("order", chosen, case.outputs["order"])


def test_each_token_is_its_patch_with_its_neighbors_and_the_last_is_what_did_not_stay():
    image = RandomImage(side=7)
    scores, keys = image.next_layer()
    choice = PruMerge.parse("5").choose(image)
    order = scores.argsort(descending=True)[:5].tolist()
    unit = torch.nn.functional.normalize(keys, dim=1)
    for token, patch in zip(choice.tokens, order, strict=False):
        near = sorted(set(range(49)) - {patch}, key=lambda one: -(unit[one] @ unit[patch]).item())[:32]
        expected = image.patches[patch] + sum(scores[one] * image.patches[one] for one in near)
        assert torch.allclose(token, expected, atol=1e-5)
    others = [one for one in range(49) if one not in order]
    expected = sum(scores[one] * image.patches[one] for one in others)
    assert torch.allclose(choice.tokens[5], expected, atol=1e-6)
    assert choice.kept.tolist() == sorted(order)


@pytest.mark.parametrize("side", [2, 3, 5])
def test_with_fewer_than_33_patches_all_others_are_neighbors(side):
    image = RandomImage(side=side)
    scores, _ = image.next_layer()
    choice = PruMerge.parse("2").choose(image)
    weighted = scores.unsqueeze(-1) * image.patches
    best = scores.argmax()
    expected = image.patches[best] + weighted.sum(dim=0) - weighted[best]
    assert torch.allclose(choice.tokens[0], expected, atol=1e-6)
    assert len(choice.tokens) == 3


@pytest.mark.parametrize(("method", "tokens"), [(PruMerge, 2), (PruMergePlus, 5)])
def test_without_an_outlier_the_best_patch_stays(method, tokens):
    flat = torch.full((36,), 0.02)
    choice = method.parse("-1").choose(RandomImage().replace(next=flat))
    # A grid of step 36 / 3: patches 0, 12 and 24, of which the first is the best.
    assert choice.kept.tolist() == ([0] if method is PruMerge else [0, 12, 24])
    assert len(choice.tokens) == len(choice.kept) + 1 <= tokens


@pytest.mark.parametrize(
    ("outliers", "points"), [(16, 48), (48, 144), (64, 192), (65, 288), (96, 288), (97, 575)]
)
def test_the_adaptive_grid_is_as_dense_as_published(outliers, points):
    scores = torch.zeros(576)
    scores[:outliers] = 1.0
    chosen = with_grid(scores, outliers).tolist()
    assert chosen[:outliers] == list(range(outliers))
    step = {48: 12, 144: 4, 192: 3, 288: 2, 575: 1}[points]
    assert chosen[outliers:] == [one for one in range(0, 575, step) if one >= outliers]
    assert len(range(0, 575, step)) == points


def test_beyond_a_sixth_of_outliers_all_patches_but_one_stay():
    scores = torch.rand(576, generator=torch.Generator().manual_seed(0)) / 1000
    scores[:100] += 1
    image = RandomImage(side=24).replace(next=scores)
    assert PruMergePlus.parse("-1").choose(image).kept.tolist() == list(range(575))


def test_the_numbers_that_a_fixed_grid_meets_are_those_of_the_released_code():
    met = [one for one in range(1, 289) if has_fixed_grid(576, 2 * one)]
    assert met == [
        *range(1, 20), *range(21, 28), 30, 32, 36, 38, 41, 44, 48, 52, 57, 64, 72, 82, 96, 115, 144, 192, 287
    ]  # fmt: skip


def test_steps_in_whole_numbers_are_those_of_the_released_ratios():
    for count in range(2, 576):
        ratio = count / (2 * 576)
        step = int(1 / ratio)
        assert fixed_grid(576, count) == range(int(step / 2), 575, step)
        assert count // 2 == int(576 * ratio)


def test_adaptive_steps_in_whole_numbers_are_those_of_the_released_ratio():
    for outliers in range(1, 145):  # a quarter at most
        chosen = with_grid(torch.arange(576, 0, -1.0), outliers).tolist()
        step = int(int(1 / (outliers / 576)) / 3)
        assert chosen[outliers:] == [one for one in range(0, 575, step) if one >= outliers]


def test_a_number_whose_grid_does_not_come_out_is_refused_with_its_neighbors():
    with pytest.raises(UserError, match=r"^PruMerge\+:100 asks for 100 of 576 patches, .*met: 96 or 104$"):
        PruMergePlus.parse("100").choose(RandomImage(side=24))


def test_below_the_lowest_number_one_neighbor_is_named():
    with pytest.raises(UserError, match="asks for 1 of 576 patches, .*met: 2$"):
        PruMergePlus.parse("0.002").choose(RandomImage(side=24))


def test_a_repeat_in_the_grid_costs_the_first_patch_that_did_not_stay():
    scores = torch.tensor([0.0, 0, 0, 0, 5, 0, 0, 0, 0])  # patch 4 is on the grid of one point
    image = RandomImage(side=3).replace(next=scores + 0.1)
    choice = PruMergePlus.parse("2").choose(image)
    assert choice.kept.tolist() == [4]
    assert len(choice.tokens) == 3
    expected = 0.1 * (image.patches.sum(dim=0) - image.patches[0] - image.patches[4])
    assert torch.allclose(choice.tokens[-1], expected, atol=1e-6)


def test_the_earlier_patch_wins_ties_among_the_kept_and_among_neighbors():
    image = RandomImage(side=7).replace(next_keys=torch.ones(49, 4))
    image.replace(next=torch.ones(49) / 50)
    choice = PruMerge.parse("2").choose(image)
    assert choice.kept.tolist() == [0, 1]
    neighbors = [one for one in range(33) if one != 1]
    expected = image.patches[1] + image.patches[neighbors].sum(dim=0) / 50
    assert torch.allclose(choice.tokens[1], expected, atol=1e-5)
