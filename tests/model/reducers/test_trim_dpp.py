"""TRIM+DPP: different things that are asked about, as CDPruner chooses them, in TRIM's kind of tokens."""

import pytest
import torch

from llava.model.multimodal_encoder.reducers.cdpruner import CDPruner
from llava.model.multimodal_encoder.reducers.trim_dpp import TrimDPP
from llava.model.multimodal_encoder.token_reduction import keep_outliers, patch_relevance
from tests.model.reducers.golden import unit_cases
from tests.model.reducers.things import ThingsImage, three_things


@pytest.fixture
def image():
    return three_things()


def test_two_patches_show_the_two_things_that_are_asked_about(image):
    kept = TrimDPP.parse("2").choose(image).kept
    assert sorted(image.things[kept].tolist()) == [0, 1]
    by_relevance = image.relevance().argsort(descending=True, stable=True)[:2]
    assert image.things[by_relevance].tolist() == [0, 0]  # which is what TRIM keeps


def test_the_rest_becomes_one_token_behind_the_kept_patches(image):
    choice = TrimDPP.parse("5").choose(image)
    assert torch.equal(choice.tokens[:5], image.patches[choice.kept])
    assert (choice.kept.diff() > 0).all()
    rest = torch.ones(36, dtype=torch.bool)
    rest[choice.kept] = False
    torch.testing.assert_close(choice.tokens[5:], image.patches[rest].mean(dim=0, keepdim=True))


def test_its_own_rule_is_trims():
    image = ThingsImage([0] * 3 + [1] * 33, relevance=[0.9, 0.0])
    assert (
        len(TrimDPP.parse("-1").choose(image).kept) == int(keep_outliers(image.relevance()[None]).sum()) == 3
    )


@pytest.mark.parametrize("case", unit_cases("cdpruner"), ids=lambda case: case.id)
def test_it_chooses_among_the_towers_patches_as_cdpruner_among_projected_ones(case, monkeypatch):
    image = case.image()
    kept = TrimDPP.parse(str(case.params["count"])).choose(image).kept
    monkeypatch.setattr(type(image), "projected", lambda own: own.patches)
    assert torch.equal(kept, CDPruner.parse(str(case.params["count"])).choose(image).kept)


def test_half_precision_works():
    for case in unit_cases("eadp"):
        image = case.image()
        image.patches = image.patches.half()
        image.relevance = lambda own=image: patch_relevance(own.joint() @ own.question()[0])
        choice = TrimDPP.parse("10").choose(image)
        assert choice.tokens.dtype == torch.float16
        assert choice.tokens.shape == (11, image.patches.shape[1])
        assert choice.tokens.isfinite().all()
    assert str(TrimDPP.parse("-1")) == "TRIM+DPP:-1"
