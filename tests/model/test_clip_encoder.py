"""The vision tower: held once, cut at the selected layer, true to CLIP, independent of the batch."""

import json
import logging
import shutil
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from llava.errors import MissingFileError, UserError
from llava.mm_utils import process_images
from llava.model.cuda_graphs import CudaGraphs
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import RECORDED_IMAGES, CLIPVisionTower
from llava.tokenizer import load_clip_tokenizer
from tests.conftest import TINY_CLIP
from tests.recorders import CallsAgain


def settings(**changes):
    values = {
        "mm_vision_tower": str(TINY_CLIP),
        "mm_vision_select_layer": -2,
        "mm_vision_token_reduce_func": "TRIM:-1",
    }
    return SimpleNamespace(**{**values, **changes})


@pytest.fixture(scope="module")
def tower():
    return build_vision_tower(settings())


@pytest.fixture(scope="module")
def whole_clip():
    return CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float32).eval()


@pytest.mark.parametrize(("layer", "layers"), [(-2, 3), (-1, 4), (-5, 0), (2, 2)])
def test_no_layer_beyond_the_selected_one_is_built(layer, layers, whole_clip):
    tower = build_vision_tower(settings(mm_vision_select_layer=layer))
    assert len(tower.vision_tower.vision_model.encoder.layers) == layers
    pixels = torch.randn(2, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = whole_clip.vision_model(pixels, output_hidden_states=True).hidden_states[layer]
    assert torch.equal(tower.encode(pixels), hidden[:, 1:])


@pytest.mark.parametrize("layer", [-2, -1, 2])
def test_the_encoder_inside_gives_the_hidden_states_that_the_whole_one_gives(layer, whole_clip):
    tower = build_vision_tower(settings(mm_vision_select_layer=layer, mm_vision_token_reduce_func=None))
    pixels = torch.randn(2, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = whole_clip.vision_model(pixels, output_hidden_states=True)
        for encoder in (tower.vision_tower, tower.vision_tower.vision_model):
            outputs = encoder(pixels, output_hidden_states=True)
            assert len(outputs.hidden_states) == len(whole.hidden_states)
            assert torch.equal(outputs.hidden_states[layer], whole.hidden_states[layer])
            assert torch.equal(tower.feature_select(outputs), tower(pixels))
    if layer == -1:
        assert torch.equal(outputs.pooler_output, whole.pooler_output)


@pytest.mark.parametrize(
    "use",
    [
        lambda outputs: outputs.hidden_states[-1][:, 1:],
        lambda outputs: outputs.hidden_states[-1].mean(),
        lambda outputs: torch.stack([outputs.last_hidden_state]),
        lambda outputs: outputs.image_embeds.norm(),
        lambda outputs: torch.nn.functional.normalize(outputs.image_embeds),
        lambda outputs: outputs.image_embeds @ torch.ones(48),
        lambda outputs: list(outputs.last_hidden_state),
    ],
)
def test_what_only_the_missing_layers_would_tell_is_refused(tower, use):
    outputs = tower.vision_tower(torch.zeros(1, 3, 336, 336), output_hidden_states=True)
    with pytest.raises(UserError, match="ends at the layer that LLaVA reads"):
        use(outputs)
    assert not hasattr(outputs.last_hidden_state, "to")  # what moves outputs between devices asks this


def test_called_as_llava_calls_it_the_tower_gives_tensors(pictures, loaded):
    _, model, processor, _ = loaded
    pixels = torch.stack(list(process_images(list(pictures.values())[:2], processor, model.config)))
    tower = build_vision_tower(settings(mm_vision_token_reduce_func=None))
    features = tower(pixels)
    assert features.shape == (2, 576, 48)
    assert torch.equal(features, tower.encode(pixels))
    for given, whole in zip(tower(list(pixels)), features, strict=True):
        assert given.shape == (1, 576, 48)
        torch.testing.assert_close(given[0], whole)
    tower.set_token_reduction("TRIM:4")
    assert tower(pixels, ["a", "b"]).shape == (2, 5, 48)
    tower.set_token_reduction("TRIM:-1")
    lengths = tower.select(pixels, ["What color is the cat?", "a dog"]).counts
    assert len(set(lengths)) == 2
    assert [len(tokens) for tokens in tower(pixels, ["What color is the cat?", "a dog"])] == list(lengths)


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_features_but_for_rounding():
    pixels = torch.randn(3, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    tower = build_vision_tower(settings(mm_vision_token_reduce_func=None))
    expected = tower(pixels)
    tower.compile_encoder()
    for images in (pixels[:1], pixels):
        # Worst difference seen: 2e-6.
        torch.testing.assert_close(tower(images), expected[: len(images)], rtol=1e-4, atol=1e-4)


def test_without_a_compiler_there_is_nothing_compiled(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    tower = build_vision_tower(settings(mm_vision_token_reduce_func=None))
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler; install one of g\+\+, clang\+\+, c\+\+"):
        tower.compile_encoder()


def test_a_tower_that_is_not_loaded_says_so():
    tower = CLIPVisionTower(str(TINY_CLIP), settings(mm_vision_token_reduce_func=None), delay_load=True)
    with pytest.raises(UserError, match="is not loaded yet: call its load_model"):
        tower(torch.zeros(1, 3, 336, 336))
    tower.load_model()
    assert tower(torch.zeros(1, 3, 336, 336)).shape == (1, 576, 48)


def test_clip_is_held_once_and_frozen(tower, whole_clip):
    last_layer = sum(p.numel() for p in whole_clip.vision_model.encoder.layers[-1].parameters())
    held = sum(p.numel() for p in tower.parameters())
    assert held == sum(p.numel() for p in whole_clip.parameters()) - last_layer - 1  # 1: the logit scale
    assert not any(p.requires_grad for p in tower.parameters())


def test_state_dict_keys_are_those_of_trained_checkpoints(tower):
    keys = set(tower.state_dict())
    assert "vision_tower.vision_model.embeddings.class_embedding" in keys
    assert "vision_tower.visual_projection.weight" in keys
    assert "text_tower.text_model.final_layer_norm.weight" in keys
    assert "text_tower.text_projection.weight" in keys


def test_without_a_reducer_that_asks_the_text_half_is_not_loaded():
    tower = build_vision_tower(settings(mm_vision_token_reduce_func=None))
    assert tower.text_tower is None
    pixels = torch.zeros(1, 3, 336, 336)
    assert tower.select(pixels).counts == (576,)
    tower.set_token_reduction("TRIM:4")
    assert tower.text_tower is not None
    assert tower.select(pixels, ["a cat"]).counts == (5,)


def test_cls_patch_keeps_the_cls_token_in_front():
    tower = build_vision_tower(
        settings(mm_vision_select_feature="cls_patch", mm_vision_token_reduce_func=None)
    )
    assert tower.select(torch.zeros(1, 3, 336, 336)).counts == (577,)


def test_questions_are_embedded_as_clip_itself_does(tower, whole_clip):
    texts = ["A cat.", "What is the color of the cat?\nAnswer the question using a single word or phrase."]
    for text in texts:
        ids = load_clip_tokenizer(tower.folder, whole_clip.config.text_config)(text, return_tensors="pt")
        with torch.no_grad():
            pooled = whole_clip.text_model(**ids).pooler_output
            expected = whole_clip.text_projection(pooled)[0]
        # Worst difference seen: 0.
        torch.testing.assert_close(tower.encode_texts([text])[0], expected, rtol=1e-6, atol=1e-6)


def test_several_texts_for_one_image_count_by_the_mean_of_their_dot_products(tower):
    patches = torch.randn(1, 576, 48, generator=torch.Generator().manual_seed(0))
    texts = ["one", "two", "three"]
    together = tower.score_patches(patches, tower.encode_texts([texts]))
    single = [tower.score_patches(patches, tower.encode_texts([text])) for text in texts]
    torch.testing.assert_close(together, torch.stack(single).mean(dim=0), rtol=1e-4, atol=1e-5)


def test_a_long_question_works_by_its_front_and_says_so_once(caplog):
    tower = build_vision_tower(settings())
    words = "what is it " * 200
    with caplog.at_level(logging.WARNING):
        first = tower.encode_texts([words + "end"])
        second = tower.encode_texts([words + "another end"])
    assert torch.equal(first, second)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "first 77" in caplog.text


def test_through_the_tower_an_image_keeps_the_same_patches_in_any_batch(pictures, loaded, reference):
    tower = build_vision_tower(settings())
    _, model, processor, _ = loaded
    pixels = process_images(list(pictures.values()), processor, model.config)
    questions = [case["question"] for case in reference[:5]]
    pairs = [(image, question) for image in range(5) for question in range(5)]
    batch = tower.select(pixels[[i for i, _ in pairs]], [questions[q] for _, q in pairs])
    for row, (image, question) in enumerate(pairs):
        alone = tower.select(pixels[image : image + 1], [questions[question]])
        assert torch.equal(alone.kept[0], batch.kept[row])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_are_float32_whatever_the_tower_is(dtype, pictures, loaded):
    _, model, processor, _ = loaded
    tower = CLIPVisionTower(str(TINY_CLIP), settings(), delay_load=True)
    tower.load_model(dtype=dtype)
    pixels = process_images([pictures["img0.png"]], processor, model.config)  # of another type than the tower
    tokens = tower.select(pixels, ["a cat"])
    assert tokens.packed.dtype is dtype
    assert tower.score_patches(tower.encode(pixels), tower.encode_texts(["a cat"])).dtype is torch.float32


def test_autocast_rounds_nothing_that_decides_which_patches_stay(pictures, loaded):
    _, model, processor, _ = loaded
    pixels = process_images([pictures["img0.png"]], processor, model.config)
    plain, tower = build_vision_tower(settings()).select(pixels, ["a cat"]), build_vision_tower(settings())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = tower.select(pixels, ["a cat"])
    assert torch.equal(tokens.packed, plain.packed)
    assert torch.equal(tower.select(pixels, ["a cat"]).packed, plain.packed)


def test_a_folder_with_the_vision_half_only_serves_reducers_that_ask_nothing(tmp_path):
    folder = tmp_path / "vision"
    CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float32).vision_model.save_pretrained(folder)
    shutil.copy(TINY_CLIP / "preprocessor_config.json", folder)
    tower = build_vision_tower(settings(mm_vision_tower=str(folder), mm_vision_token_reduce_func="Pool:4"))
    assert tower.select(torch.zeros(1, 3, 336, 336)).counts == (4,)
    with pytest.raises(UserError, match="text encoder"):
        tower.set_token_reduction("TRIM:-1")


def test_a_folder_with_missing_weights_is_refused(tmp_path):
    folder = shutil.copytree(TINY_CLIP, tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    del weights["vision_model.post_layernorm.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks 1 weights .* vision_model.post_layernorm.weight"):
        build_vision_tower(settings(mm_vision_tower=str(folder)))


def test_a_missing_folder_names_the_way_out():
    with pytest.raises(MissingFileError, match=r"/nowhere/clip.*--vision-tower"):
        build_vision_tower(settings(mm_vision_tower="/nowhere/clip"))


def test_a_folder_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match="'bert'"):
        build_vision_tower(settings(mm_vision_tower=str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_vision_token_reduce_func": "TRIM"}, "accepted"),
        ({"mm_vision_select_feature": "cls"}, "accepted: patch, cls_patch"),
        ({"mm_vision_select_layer": -9}, "hidden states -5 to 4"),
        ({"mm_vision_tower": None}, "names no vision tower"),
        ({"s2": True}, "s2"),
    ],
)
def test_a_bad_setting_is_refused_before_any_picture_is_seen(change, message):
    with pytest.raises(UserError, match=message):
        build_vision_tower(settings(**change))


def test_questions_must_match_images(tower):
    pixels = torch.zeros(2, 3, 336, 336)
    with pytest.raises(UserError, match="none was given"):
        tower.select(pixels)
    with pytest.raises(UserError, match="3 questions for 2 images"):
        tower.select(pixels, ["a", "b", "c"])
    assert len(tower.select(pixels, "one for all").counts) == 2


def test_the_tower_keeps_no_activations_for_a_backward_pass(tower):
    kept = []
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape), lambda _: None):
        tokens = tower.select(pixels, ["What color is the cat?"])
    assert kept == []
    assert not tokens.packed.requires_grad


QUESTIONS = ["What is it?", "What color is the star, and where is it?", "What is it?"]


@pytest.mark.parametrize("reduction", ["TRIM:-1", "TRIM:0.21", "TRIM:5000", "Random:0.21", "none"])
def test_replayed_passes_choose_and_average_the_same(reduction, tower):
    recorder = CallsAgain()
    replaying = build_vision_tower(settings())
    replaying.record(recorder)
    for one in (tower, replaying):
        one.set_token_reduction(reduction)
    for seed in range(2):  # the second batch replays what the first one recorded
        pixels = torch.randn(3, 3, 336, 336, generator=torch.Generator().manual_seed(seed))
        expected, found = tower.select(pixels, QUESTIONS), replaying.select(pixels, QUESTIONS)
        assert torch.equal(found.packed, expected.packed)
        assert torch.equal(found.kept, expected.kept)
        assert found.counts == expected.counts
    # Two texts of different lengths and a choice where TRIM reads them, and the encoder.
    assert recorder.recorded == (4 if "TRIM" in reduction else 1)
    tower.set_token_reduction("TRIM:-1")


def test_what_was_recorded_goes_when_weights_move_and_stays_with_the_original():
    tower, recorder = build_vision_tower(settings()), CallsAgain()
    tower.record(recorder)
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    before = tower.encode(pixels)
    assert torch.equal(deepcopy(tower).encode(pixels), before)
    assert (recorder.recorded, recorder.replayed) == (1, 1)
    after = tower.to(torch.float64).encode(pixels)
    assert recorder.recorded == 2
    assert after.dtype == torch.float64
    torch.testing.assert_close(after.float(), before)
    tower.record(None)
    assert torch.equal(tower.encode(pixels), after)
    assert recorder.replayed == 2


def test_large_batches_are_not_recorded():
    tower, recorder = build_vision_tower(settings()), CallsAgain()
    tower.record(recorder)
    tower.encode(torch.zeros(RECORDED_IMAGES + 1, 3, 336, 336))
    assert recorder.recorded == 0


def test_a_training_may_use_what_an_inference_recorded():
    tower = build_vision_tower(settings(mm_vision_token_reduce_func=None))
    tower.record(CallsAgain())
    pixels = torch.zeros(1, 3, 336, 336)
    with torch.inference_mode():
        tower(pixels)
    weight = torch.ones(tower.hidden_size, requires_grad=True)
    (tower(pixels) * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.gpu
@pytest.mark.parametrize("reduction", ["TRIM:-1", "TRIM:0.21"])
def test_cuda_graphs_choose_the_same_patches(reduction):
    tower = build_vision_tower(settings(mm_vision_token_reduce_func=reduction)).cuda()
    batches = [
        torch.randn(3, 3, 336, 336, generator=torch.Generator().manual_seed(seed)) for seed in range(3)
    ]
    expected = [tower.select(pixels, QUESTIONS) for pixels in batches]
    tower.clear_text_cache()
    tower.record(CudaGraphs(tower.device))
    for pixels, tokens in zip(batches, expected, strict=True):
        found = tower.select(pixels, QUESTIONS)
        assert torch.equal(found.kept, tokens.kept)
        torch.testing.assert_close(found.packed, tokens.packed)
    assert tower._recorded is not None and not tower._recorded.vision._fails
    assert not tower._recorded.choice._fails and not tower._recorded.text._fails
