import numpy as np
import pytest
import torch

from playground.shapes.clip_losses import attribute_loss, contrastive_loss, naming_loss
from playground.shapes.clip_model import build_clip, encode_picture, encode_texts, normalize
from playground.shapes.clip_tokenizer import train_clip_tokenizer
from playground.shapes.presets import PRESETS
from playground.shapes.train_clip import world_texts
from playground.shapes.world import GRID, Scene


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_clip_tokenizer(world_texts(30), 150, tmp_path_factory.mktemp("clip"))


QUESTION = torch.ones(1, 1, 1)
FIRST_NAMED = torch.tensor([[[1.0, 0.0, 0.0]]])


def _products(*values):
    return torch.tensor(values).view(1, -1, 1)


def test_naming_wants_low_products_on_named_patches():
    ground = torch.tensor([[False, True, True]])
    good, even = naming_loss(_products(-8.0, 8.0, 8.0), QUESTION, FIRST_NAMED, ground)
    bad, _ = naming_loss(_products(8.0, -8.0, -8.0), QUESTION, FIRST_NAMED, ground)
    assert good < 0.05 and bad > 10
    assert even == 0


def test_background_is_uneven_by_its_variance():
    ground = torch.tensor([[False, True, True]])
    _, uneven = naming_loss(_products(-9.0, 1.0, 3.0), QUESTION, FIRST_NAMED, ground)
    assert uneven == 1


def test_things_that_are_not_named_must_be_like_the_background():
    ground = torch.tensor([[False, True, False]])
    _, uneven = naming_loss(_products(-9.0, 5.0, 2.0), QUESTION, FIRST_NAMED, ground)
    assert uneven == 9


def test_attributes_want_the_lowest_product_for_the_right_text():
    texts = torch.eye(3)
    label = torch.tensor([[1, -100]])
    right = attribute_loss(torch.tensor([[[4.0, -4.0, 4.0], [9.0, 9.0, 9.0]]]), texts, label)
    wrong = attribute_loss(torch.tensor([[[4.0, 4.0, -4.0], [9.0, 9.0, 9.0]]]), texts, label)
    assert right < 0.01 and wrong > 7


def test_contrast_is_least_for_matching_pairs():
    pairs = torch.eye(4)
    scale = torch.tensor(3.0)
    assert contrastive_loss(pairs, pairs, scale) < contrastive_loss(pairs, pairs.roll(1, 0), scale)


def test_tokenizer_knows_clips_frame_and_every_byte(tokenizer):
    ids = tokenizer("What color is the star?")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id == len(tokenizer) - 1
    strange = tokenizer.decode(tokenizer("Zürich 你好")["input_ids"], skip_special_tokens=True)
    assert strange.strip() == "zürich 你好"
    assert len(ids) <= 9


def test_patches_are_those_of_transformers_own_penultimate_layer(tokenizer):
    torch.manual_seed(0)
    model = build_clip(PRESETS["smoke"], tokenizer).eval()
    pixels = normalize(np.asarray(Scene.from_seed(0).render())[None])
    every = torch.arange(GRID * GRID).unsqueeze(0)
    with torch.no_grad():
        joint, pooled = encode_picture(model, pixels, every)
        output = model.vision_model(pixels, output_hidden_states=True)
        patches = output.hidden_states[-2][:, 1:]
        expected = model.visual_projection(model.vision_model.post_layernorm(patches))
        texts = encode_texts(model, tokenizer, ["a star", "What color is the star?"])
        features = model.get_image_features(pixel_values=pixels)
    torch.testing.assert_close(joint, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled, getattr(features, "pooler_output", features), atol=1e-5, rtol=1e-4)
    assert texts.shape == (2, joint.shape[-1])
