"""What methods read inside the encoder: true to eager attention, only when wanted, and no patch changed."""

import threading

import pytest
import torch
from transformers import CLIPModel, CLIPVisionModel

from llava.errors import UserError
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.image_inputs import padding_mask
from llava.model.multimodal_encoder.reducers.base import Signal
from tests.conftest import TINY_CLIP
from tests.model.test_clip_encoder import settings


@pytest.fixture(scope="module")
def tower():
    return build_vision_tower(settings(mm_vision_token_reduce_func=None))


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 336, 336, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def attentions(pixels):
    """Maps of all layers by transformers' eager attention, (B, heads, L, L) each."""
    eager = CLIPVisionModel.from_pretrained(TINY_CLIP, attn_implementation="eager").eval()
    with torch.no_grad():
        return eager(pixels, output_attentions=True).attentions


def test_attention_is_that_of_eager_attention(tower, pixels, attentions):
    _, signals = tower.look(pixels, list(Signal))
    selected, early = attentions[-2], attentions[1]  # of four layers the third, and 9 / 24 of them
    expected = selected.mean(dim=1)[:, 0, 1:]
    torch.testing.assert_close(signals[Signal.CLS_ATTENTION], expected, atol=1e-6, rtol=1e-4)
    received = torch.stack([maps.mean(dim=(1, 2))[:, 1:] for maps in (early, selected)], dim=1)
    torch.testing.assert_close(signals[Signal.RECEIVED_ATTENTION], received, atol=1e-6, rtol=1e-4)


def test_cls_and_keys_are_those_of_the_selected_layer(tower, pixels):
    patches, signals = tower.look(pixels, [Signal.CLS, Signal.KEYS])
    hidden = tower.vision_tower.selected_hidden_state(pixels)
    assert torch.equal(signals[Signal.CLS], hidden[:, 0])
    assert torch.equal(patches, hidden[:, 1:])
    layer = tower.vision_tower.vision_model.encoder.layers[-1]
    before = tower.vision_tower.vision_model(pixels, output_hidden_states=True).hidden_states[-3]
    keys = layer.self_attn.k_proj(layer.layer_norm1(before)).unflatten(-1, (4, -1)).mean(dim=2)[:, 1:]
    torch.testing.assert_close(signals[Signal.KEYS], keys, atol=1e-6, rtol=1e-4)


def test_signals_change_no_patch_and_are_the_same_in_any_batch(tower, pixels):
    patches, signals = tower.look(pixels, list(Signal))
    assert torch.equal(patches, tower.encode(pixels))
    for row in range(2):
        _, alone = tower.look(pixels[row : row + 1], list(Signal))
        for signal in Signal:
            assert torch.equal(alone[signal][0], signals[signal][row]), signal


def test_nothing_listens_when_nothing_is_wanted(tower, pixels):
    tower.look(pixels[:1], list(Signal))
    assert not [name for name, one in tower.named_modules() if one._forward_hooks and name.endswith("_proj")]
    assert tower.look(pixels[:1])[1] == {}


def test_the_next_layer_is_that_of_the_whole_encoder_and_no_part_of_a_checkpoint(tower, pixels, attentions):
    names = set(tower.state_dict())
    hidden = tower.vision_tower.selected_hidden_state(pixels)
    attention, keys = tower.look_ahead(hidden[0])
    layer = CLIPModel.from_pretrained(TINY_CLIP).eval().vision_model.encoder.layers[3]
    normed = layer.layer_norm1(hidden[0])
    query, expected = layer.self_attn.q_proj(normed[0]), layer.self_attn.k_proj(normed)
    torch.testing.assert_close(keys, expected[1:], atol=1e-6, rtol=1e-5)
    scores = (expected @ query / len(query) ** 0.5).softmax(dim=0)[1:]
    torch.testing.assert_close(attention, scores, atol=1e-7, rtol=1e-4)
    assert set(tower.state_dict()) == names


def test_a_tower_that_ends_with_the_last_layer_has_no_next_one():
    tower = build_vision_tower(settings(mm_vision_select_layer=-1, mm_vision_token_reduce_func=None))
    with pytest.raises(UserError, match="mm_vision_select_layer"):
        tower.look_ahead(torch.zeros(577, tower.hidden_size))


@pytest.mark.parametrize("setting", ["SCOPE:64", "MMTok:64", "DivPrune:64"])
def test_methods_want_patches_without_cls(setting):
    tower = build_vision_tower(
        settings(mm_vision_select_feature="cls_patch", mm_vision_token_reduce_func=None)
    )
    with pytest.raises(UserError, match="mm_vision_select_feature is 'cls_patch'; accepted with it: patch"):
        tower.set_token_reduction(setting)


@pytest.mark.parametrize(
    ("setting", "layer", "message"),
    [
        ("PruMerge:64", -1, "mm_vision_select_layer"),
        ("SCOPE:64", 0, "SCOPE:64 reads layers, and mm_vision_select_layer 0 leaves none"),
        ("VisionZip:3", -2, "VisionZip:3 asks for 3 of 576 visual tokens"),
        (r"PruMerge\+:100", -2, r"PruMerge\+:100 asks for 100 of 576 patches"),
    ],
)
def test_what_a_tower_cannot_do_is_said_when_it_is_set(setting, layer, message):
    tower = build_vision_tower(settings(mm_vision_select_layer=layer, mm_vision_token_reduce_func=None))
    with pytest.raises(UserError, match=message):
        tower.set_token_reduction(setting.replace("\\", ""))
    assert str(tower.token_reduction) == "none"


def test_threads_hear_their_own_images(tower):
    images = [torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    wanted = [[Signal.CLS_ATTENTION, Signal.KEYS], [Signal.CLS_ATTENTION], []]
    expected = [tower.look(*one)[1] for one in zip(images, wanted, strict=True)]
    start, wrong = threading.Barrier(3), []

    def work(image, signals, own):
        start.wait()
        for _ in range(15):
            found = tower.look(image, signals)[1]
            wrong.extend(signal for signal in signals if not torch.equal(found[signal], own[signal]))

    threads = [threading.Thread(target=work, args=one) for one in zip(images, wanted, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((100, 100), [], []),
        ((640, 480), [0, 1, 2, 21, 22, 23], []),  # 84 of 336 pixels are empty, 42 at either end
        ((480, 640), [], [0, 1, 2, 21, 22, 23]),
        ((336, 300), [0, 23], []),  # 36 pixels: 18 at either end are one patch of 14 and a part
        ((336, 335), [], []),
        ((2000, 1), [*range(11), *range(12, 24)], []),  # a strip thinner than a pixel keeps a line of patches
    ],
)
def test_padding_is_where_a_square_was_filled_up(size, rows, columns):
    inside = padding_mask(size, side=24, patch=14)
    expected = torch.zeros(24, 24, dtype=torch.bool)
    expected[rows] = True
    expected[:, columns] = True
    assert torch.equal(inside, expected)
