"""Cover: what is relevant is covered once, padding is left out, and the tokens are TRIM's kind."""

import pytest
import torch

from llava.model.multimodal_encoder.token_reduction import keep_outliers, patch_relevance
from playground.cover import Cover, CoverSalient
from tests.model.reducers.golden import unit_cases
from tests.model.reducers.things import WIDTH, ThingsImage, three_things


@pytest.fixture
def image():
    return three_things()


def test_two_patches_show_the_two_things_that_are_asked_about(image):
    kept = Cover.parse("2").choose(image).kept
    assert sorted(image.things[kept].tolist()) == [0, 1]
    by_relevance = image.relevance().argsort(descending=True, stable=True)[:2]
    assert image.things[by_relevance].tolist() == [0, 0]  # which is what TRIM keeps


def test_the_rest_becomes_one_token_behind_the_kept_patches(image):
    choice = Cover.parse("5").choose(image)
    assert choice.tokens.shape == (6, WIDTH)
    assert torch.equal(choice.tokens[:5], image.patches[choice.kept])
    assert (choice.kept.diff() > 0).all()
    rest = torch.ones(36, dtype=torch.bool)
    rest[choice.kept] = False
    torch.testing.assert_close(choice.tokens[5], image.patches[rest].mean(dim=0))


def test_padding_is_kept_only_where_nothing_else_is_left(image):
    image.padding[:12] = True
    assert (Cover.parse("10").choose(image).kept >= 12).all()
    assert (Cover.parse("30").choose(image).kept < 12).sum() == 6


def test_its_own_rule_is_trims_among_what_is_no_padding():
    image = ThingsImage([0] * 3 + [1] * 33, relevance=[0.9, 0.0])
    expected = int(keep_outliers(image.relevance()[None]).sum())
    assert expected == 3
    assert len(Cover.parse("-1").choose(image).kept) == expected
    image.padding[:2] = True
    shown = image.relevance()[2:]
    assert len(Cover.parse("-1").choose(image).kept) == int(keep_outliers(shown[None]).sum()) == 1


def test_saliency_decides_between_what_is_equally_relevant():
    image = ThingsImage([0] * 12 + [1] * 12 + [2] * 12, relevance=[0.9, 0.9, 0.9])
    for salient in range(3):
        image.attention = torch.where(image.things == salient, 0.9, 0.01)
        kept = CoverSalient.parse("2").choose(image).kept
        assert salient in image.things[kept[:1]] or salient in image.things[kept]
        (first,) = CoverSalient.parse("0.03").choose(image).kept
        assert image.things[first] == salient


@pytest.mark.parametrize("method", [Cover, CoverSalient])
def test_half_precision_and_any_square_work(method):
    for case in unit_cases("eadp"):
        image = case.image()
        image.patches = image.patches.half()
        image.relevance = lambda own=image: patch_relevance(own.joint() @ own.question()[0])
        choice = method.parse("10").choose(image)
        assert choice.tokens.dtype == torch.float16
        assert len(choice.tokens) == 11
        assert choice.tokens.isfinite().all()
    assert str(method.parse("-1")) == f"{method.name}:-1"
