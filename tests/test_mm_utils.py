"""Pixels and prompt ids: sentinels, padding, tiles, and words that stop generation."""

import base64
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.errors import UserError
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    expand2square,
    get_anyres_image_grid_shape,
    get_model_name_from_path,
    load_image_from_base64,
    process_images,
    select_best_resolution,
    tokenizer_image_token,
)
from llava.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "llava-v1.5-tiny"
CASES = json.loads((GOLDEN / "tokens.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(CHECKPOINT)


@pytest.fixture(scope="module")
def processor():
    return CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


@pytest.mark.parametrize("legacy", [True, False])
def test_ids_with_sentinels_are_the_published_ones(legacy: bool, tmp_path: Path):
    shutil.copy(CHECKPOINT / "tokenizer.model", tmp_path)
    config = json.loads((CHECKPOINT / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "legacy": legacy}))
    tokenizer = load_tokenizer(tmp_path)
    for case in CASES:
        if case["legacy"] == legacy:
            assert tokenizer_image_token(case["text"], tokenizer) == case["image"], case["text"]


def test_ids_as_a_tensor(tokenizer):
    ids = tokenizer_image_token("<image>\nHi", tokenizer, return_tensors="pt")
    assert ids.dtype == torch.long
    assert ids[:2].tolist() == [1, -200]
    with pytest.raises(ValueError, match="'np'"):
        tokenizer_image_token("Hi", tokenizer, return_tensors="np")


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_padding_centers_every_kind_of_picture(mode: str):
    square = expand2square(Image.new(mode, (5, 2)), (122, 116, 104))
    assert square.size == (5, 5)
    pixels = [square.getpixel((2, row)) for row in range(5)]
    # Three rows to add: one above, two below, by integer division.
    assert [pixel == (122, 116, 104) for pixel in pixels] == [True, False, False, True, True]


def test_padded_border_is_near_zero_after_normalization(processor):
    pixels = process_images(
        [Image.new("RGB", (28, 14), "white")], processor, SimpleNamespace(image_aspect_ratio="pad")
    )
    assert pixels.shape == (1, 3, 28, 28)
    assert pixels[0, :, 0].abs().max() < 0.02  # int(mean * 255) is at most one level below the mean
    assert pixels[0, :, 14].min() > 1.5


def test_other_ratios_are_cropped(processor):
    pixels = process_images([Image.new("RGB", (56, 28), "white")] * 2, processor, SimpleNamespace())
    assert pixels.shape == (2, 3, 28, 28)
    assert pixels.min() > 1.5


def test_tiles_come_after_the_small_whole(processor):
    config = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints="[[28, 56], [56, 28]]")
    wide = Image.new("RGB", (60, 20), "white")
    wide.paste((0, 0, 0), (30, 0, 60, 20))
    pixels = process_images([wide], processor, config)
    assert pixels.shape == (1, 3, 3, 28, 28)
    means = pixels[0, 1:, :, 14].mean(dim=(1, 2))
    assert means[0] > 1.5
    assert means[1] < 0
    mixed = process_images(
        [wide, Image.new("RGB", (20, 20))],
        processor,
        SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=[(56, 28), (28, 28)]),
    )
    assert [image.shape[0] for image in mixed] == [3, 2]


def test_the_best_resolution_keeps_most_and_wastes_least():
    resolutions = [(336, 672), (672, 336), (672, 672), (1008, 336)]
    assert select_best_resolution((800, 300), resolutions) == (1008, 336)
    assert select_best_resolution((300, 300), resolutions) == (336, 672)
    assert get_anyres_image_grid_shape((800, 300), str(resolutions), 336) == (3, 1)


def test_images_in_base64():
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, format="PNG")
    assert load_image_from_base64(base64.b64encode(buffer.getvalue())).size == (3, 2)
    in_lines = base64.encodebytes(buffer.getvalue()).replace(b"\n", b"\r\n")
    assert load_image_from_base64(in_lines).size == (3, 2)
    assert load_image_from_base64(in_lines.decode()).size == (3, 2)


@pytest.mark.parametrize("image", ["not base64!", "AAAé", b"\xff\xfe", "AAA", "AAAA", ""])
def test_what_is_no_image_in_base64_is_refused(image: str | bytes):
    with pytest.raises(UserError, match=r"base64|the image"):
        load_image_from_base64(image)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("liuhaotian/llava-v1.5-7b", "llava-v1.5-7b"),
        ("/models/llava-lora/checkpoint-50/", "llava-lora_checkpoint-50"),
        ("checkpoint-50", "checkpoint-50"),
    ],
)
def test_model_names_come_from_paths(path: str, name: str):
    assert get_model_name_from_path(path) == name


def test_generation_stops_at_a_keyword(tokenizer):
    prompt = tokenizer("Say stop: ###", return_tensors="pt").input_ids
    criteria = KeywordsStoppingCriteria(["###"], tokenizer, prompt)
    ended = tokenizer("A cat.###", return_tensors="pt").input_ids
    going = tokenizer("A cat. And", return_tensors="pt").input_ids[:, : ended.shape[1]]
    assert criteria(ended, None).tolist() == [True]
    assert criteria(going, None).tolist() == [False]
    assert criteria(torch.cat([prompt, going], dim=1), None).tolist() == [False]
    assert criteria(prompt[:, :0], None).tolist() == [False]
    assert criteria.call_for_batch(ended, None) is True
    assert criteria.call_for_batch(going, None) is False


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"do_resize": False, "crop_size": {"height": 40, "width": 90}},  # wider than the image: filled up
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0], "rescale_factor": 0.5},
    ],
)
def test_pixels_are_those_of_the_processor_to_the_last_bit(changes, processor):
    own = CLIPImageProcessorPil(**{**processor.to_dict(), **changes})
    random = np.random.default_rng(0)
    for shape in ((48, 64, 3), (70, 41, 3)):
        image = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
        (pixels,) = process_images([image], own, SimpleNamespace(image_aspect_ratio=None))
        expected = own.preprocess(image, return_tensors="pt")["pixel_values"][0]
        assert pixels.dtype == expected.dtype
        assert torch.equal(pixels, expected)
