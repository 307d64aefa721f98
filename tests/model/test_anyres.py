"""Crops of a high-resolution picture, arranged as LLaVA-1.6 reads them (published TRIM loses the tiles)."""

import copy
from types import SimpleNamespace

import pytest
import torch

from llava.assistant import Assistant
from llava.errors import UserError
from llava.mm_utils import process_images
from llava.model.anyres import arrange_crops, cut_padding
from llava.model.llava_arch import unpad_image

PINPOINTS = [[672, 672]]
VISION = SimpleNamespace(image_size=336)


def config(merge_type, ratio="anyres"):
    return SimpleNamespace(
        mm_patch_merge_type=merge_type, image_aspect_ratio=ratio, image_grid_pinpoints=PINPOINTS
    )


def crops(side=2):
    """The whole picture (tokens 0-3), then four tiles; one feature that names the token."""
    return list(torch.arange(5.0 * side * side).reshape(5, side * side, 1))


def test_tiles_lie_as_on_the_picture():
    tokens = arrange_crops(crops(), 2, (672, 672), None, config("spatial"), VISION)
    rows = [[0, 1, 2, 3], [4, 5, 8, 9], [6, 7, 10, 11], [12, 13, 16, 17], [14, 15, 18, 19]]
    assert tokens.flatten().tolist() == [token for row in rows for token in row]


def test_unpad_ends_every_row_with_a_newline_token():
    tokens = arrange_crops(crops(), 2, (672, 672), torch.tensor([-1.0]), config("spatial_unpad"), VISION)
    assert len(tokens) == 4 + 4 * 5
    assert tokens[4:9].flatten().tolist() == [4, 5, 8, 9, -1]


def test_padding_is_cut_to_the_pictures_proportions():
    picture = torch.arange(16.0).reshape(4, 4, 1)
    assert cut_padding(picture, (400, 200)).flatten().tolist() == list(range(4, 12))
    assert cut_padding(picture, (200, 400)).shape == (4, 2, 1)
    assert cut_padding(picture, (300, 300)).shape == (4, 4, 1)


def test_llavas_name_cuts_a_grid_with_the_width_in_front():
    picture = torch.arange(16).reshape(4, 4, 1)
    assert unpad_image(picture.permute(2, 0, 1), (400, 200)).flatten().tolist() == list(range(4, 12))


def test_a_single_crop_gets_one_newline():
    whole = crops()[:1]
    assert arrange_crops(whole, 2, None, None, config("spatial"), VISION) is whole[0]
    tokens = arrange_crops(whole, 2, None, torch.tensor([-1.0]), config("spatial_unpad"), VISION)
    assert tokens.flatten().tolist() == [0, 1, 2, 3, -1]


def test_several_crops_need_anyres_and_the_size():
    with pytest.raises(UserError, match="'pad'"):
        arrange_crops(crops(), 2, (672, 672), None, config("spatial", ratio="pad"), VISION)
    with pytest.raises(UserError, match="image_sizes"):
        arrange_crops(crops(), 2, None, None, config("spatial"), VISION)


@pytest.mark.parametrize(("merge_type", "tokens"), [("flat", 5 * 576), ("spatial", 5 * 576)])
def test_no_tile_is_lost_with_or_without_reduction(
    merge_type, tokens, loaded, pictures, reduction, monkeypatch
):
    _, model, processor, _ = loaded
    for key, value in vars(config(merge_type)).items():
        monkeypatch.setattr(model.config, key, value, raising=False)
    picture = pictures["img0.png"].resize((672, 672))
    pixels = process_images([picture], processor, model.config)
    ids = torch.tensor([[1, -200, 13]])
    assert model(ids, images=pixels, image_sizes=[picture.size]).logits.shape[1] == 2 + tokens
    reduction("TRIM:10")
    reduced = model(ids, images=pixels, image_sizes=[picture.size], texts="what?")
    assert reduced.logits.shape[1] == 2 + 5 * 11


def test_a_newline_ends_images_that_were_cut_and_no_others(checkpoint_copy, pictures):
    """Published LLaVA joins crops where images come as a list, and does nothing to a batch of whole ones."""
    folder = checkpoint_copy(mm_patch_merge_type="spatial_unpad", image_aspect_ratio="pad")
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights["model.image_newline"] = torch.zeros_like(weights["model.norm.weight"])
    torch.save(weights, folder / "pytorch_model.bin")
    assistant = Assistant.load(str(folder), device="cpu")
    model, tower = assistant.model, assistant.model.get_vision_tower()
    pixels = process_images([pictures["img0.png"]], tower.image_processor, model.config)
    ids = torch.tensor([[1, -200, 13]])
    for images, tokens in ((pixels, 576), ([pixels[0]], 577), (pixels[None], 577)):
        assert model(ids, images=images).logits.shape[1] == 2 + tokens
    assert assistant.answer("What?", pictures["img0.png"]).cost.visual_tokens == 576
    newline = model.get_model().image_newline.requires_grad_(True)
    model(ids, images=pixels).logits.sum().backward()
    assert newline.grad.count_nonzero() == 0  # of no use, and yet in the graph, for which processes wait


def test_a_processor_that_squeezes_has_tiles_too(loaded, pictures):
    processor = copy.deepcopy(loaded[2])
    processor.size = {"height": 336, "width": 336}
    (pixels,) = process_images([pictures["img0.png"]], processor, config("flat"))
    assert pixels.shape == (5, 3, 336, 336)
