"""What holds for every method that only chooses patches."""

from dataclasses import replace

import pytest
import torch

from llava.model.multimodal_encoder.reducers.cdpruner import CDPruner
from llava.model.multimodal_encoder.reducers.divprune import DivPrune
from llava.model.multimodal_encoder.reducers.eadp import EADP
from llava.model.multimodal_encoder.reducers.mmtok import MMTok
from llava.model.multimodal_encoder.reducers.scope import SCOPE
from llava.model.multimodal_encoder.token_reduction import Count, Ratio
from tests.model.reducers.golden import unit_cases

METHODS = [DivPrune, CDPruner, SCOPE, MMTok, EADP]


def of_64_patches(method):
    return next(case for case in unit_cases(method.__name__.lower()) if case.side == 8)


def with_inputs(case, change):
    return replace(case, inputs={name: change(one) for name, one in case.inputs.items()}).image()


@pytest.fixture(params=METHODS, ids=lambda one: one.__name__)
def method(request):
    return request.param


@pytest.mark.parametrize("value", ["64", "2", "0.25", "1"])
def test_a_setting_is_written_as_it_is_read(method, value):
    setting = method.parse(value)
    assert str(setting) == f"{method.__name__}:{value}"
    assert method.parse(str(setting).partition(":")[2]) == setting


@pytest.mark.parametrize("value", ["-1", "0", "1.5", "-3", "nan", "inf", "", "many", "64:2"])
def test_any_other_setting_is_refused_by_name(method, value):
    with pytest.raises(ValueError, match=f"{method.__name__} takes .* not {value!r}"):
        method.parse(value)


@pytest.mark.parametrize("budget", [Count(64), Count(1000), Ratio(1)])
def test_everything_stays_within_the_budget(method, budget):
    choice = method(budget).choose(of_64_patches(method).image())
    assert choice.kept.tolist() == list(range(64))
    assert choice.tokens is None


@pytest.mark.parametrize(
    ("budget", "kept"), [(Count(2), 2), (Count(63), 63), (Ratio(0.3), 19), (Ratio(0.001), 1)]
)
def test_as_many_patches_stay_as_asked_in_raster_order(method, budget, kept):
    choice = method(budget).choose(of_64_patches(method).image())
    assert len(choice.kept) == kept
    assert (choice.kept.diff() > 0).all()
    assert choice.tokens is None


def test_half_precision_keeps_the_same(method):
    case = of_64_patches(method)  # stored as float16, so that nothing is rounded
    kept = method(Count(16)).choose(with_inputs(case, torch.Tensor.half)).kept
    assert torch.equal(kept, method(Count(16)).choose(case.image()).kept)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_patches_that_are_all_alike_still_fill_the_count(method, value):
    image = with_inputs(of_64_patches(method), lambda one: torch.full_like(one, value))
    kept = method(Count(16)).choose(image).kept
    assert len(kept.unique()) == 16
    assert kept.min() >= 0
    assert kept.max() < 64


def test_a_choice_leaves_its_inputs_as_they_are(method):
    case = of_64_patches(method)
    before = {name: one.clone() for name, one in case.inputs.items()}
    method(Count(16)).choose(case.image())
    assert all(torch.equal(case.inputs[name], one) for name, one in before.items())


def test_a_choice_needs_no_gradient(method):
    image = with_inputs(of_64_patches(method), lambda one: one.clone().requires_grad_())
    assert len(method(Count(16)).choose(image).kept) == 16
