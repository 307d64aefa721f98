"""What stands behind a method's colon, and what holds for every method with a budget."""

import pytest
import torch

from llava.model.multimodal_encoder.reducers.base import Choice, everything
from llava.model.multimodal_encoder.reducers.fastervlm import FasterVLM
from llava.model.multimodal_encoder.reducers.hiprune import HiPrune
from llava.model.multimodal_encoder.reducers.prumerge import PruMerge, PruMergePlus
from llava.model.multimodal_encoder.reducers.tome import ToMe
from llava.model.multimodal_encoder.reducers.visionzip import VisionZip
from llava.model.multimodal_encoder.reducers.vispruner import VisPruner
from llava.model.multimodal_encoder.token_reduction import ReducerInputs
from tests.model.reducers.synthetic import RandomImage

ADAPTIVE = [PruMerge, PruMergePlus]  # which add a token for the rest, too
FIXED = [FasterVLM, HiPrune, ToMe, VisPruner, VisionZip]
METHODS = ADAPTIVE + FIXED


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", ["64", "0.25", "1"])
def test_a_setting_reads_what_it_writes(method, value):
    found = method.parse(value)
    assert str(found) == f"{method.name}:{value}"
    assert method.parse(str(found).partition(":")[2]) == found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", ["", "many", "0", "-2", "1.5", "nan", "inf"])
def test_what_is_no_number_of_tokens_is_refused_with_what_would_be(method, value):
    counted = "patches beside a token for the rest" if method in ADAPTIVE else "visual tokens"
    with pytest.raises(ValueError, match=f"takes a whole number of {counted}, or a share") as refused:
        method.parse(value)
    assert str(refused.value).endswith(f"but not {value!r}")
    assert ("-1 for its own rule" in str(refused.value)) == (method in ADAPTIVE)


@pytest.mark.parametrize("method", FIXED)
def test_a_method_without_a_rule_of_its_own_says_so(method):
    with pytest.raises(ValueError, match="but not '-1', because it has no rule of its own"):
        method.parse("-1")


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_method_with_a_rule_of_its_own_takes_minus_one(method):
    assert str(method.parse("-1")) == f"{method.name}:-1"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", ["36", "50", "1"])
def test_a_budget_of_all_patches_leaves_them_alone(method, value):
    choice = method.parse(value).choose(RandomImage(side=6))
    assert choice.kept.tolist() == list(range(36))
    assert choice.tokens is None


@pytest.mark.parametrize("method", METHODS)
def test_a_share_is_of_the_patches(method):
    shared, counted = (method.parse(value).choose(RandomImage(side=8)) for value in ("0.25", "16"))
    assert torch.equal(shared.kept, counted.kept)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_computed_in_full_and_comes_back_as_it_was(method):
    half = RandomImage(side=8, dtype=torch.float16)
    full = RandomImage(side=8).replace(
        patches=half.patches.float(), cls=half.cls().float(), next_keys=half.next_layer()[1].float()
    )
    found, expected = (method.parse("16").choose(image) for image in (half, full))
    assert torch.equal(found.kept, expected.kept)
    if expected.tokens is not None:
        assert found.tokens.dtype == torch.float16
        assert torch.equal(found.tokens, expected.tokens.half())


class Halving(ToMe):
    """Makes tokens of half of the patches, or keeps all, and has all projected."""

    needs_projected = True

    def choose(self, image):
        if image.patches[0, 0] > 0:
            return everything(image)
        return Choice(torch.arange(18), 2 * image.patches[:18])


@pytest.mark.parametrize(("signs", "is_projected"), [((1, -1), False), ((-1, -1), False), ((1, 1), True)])
def test_tokens_of_a_batch_are_all_projected_or_none(signs, is_projected):
    images = [RandomImage(side=6, seed=seed) for seed in range(2)]
    for image, sign in zip(images, signs, strict=True):
        image.patches[0, 0] = sign
        image.projected = lambda image=image: image.patches * 3
    patches = torch.stack([image.patches for image in images])
    found = Halving.parse("18")(ReducerInputs(patches, patches, lambda: patches, images))
    assert found.counts == tuple(36 if sign > 0 else 18 for sign in signs)
    assert (found.projected is not None) == is_projected
    if is_projected:
        assert torch.equal(found.projected, 3 * found.packed)
