"""Pictures and questions through our own tower, against the authors' code on the same tiny models."""

import gc
import json
import weakref

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llava.errors import UserError
from llava.model.multimodal_encoder import clip_encoder
from llava.model.multimodal_encoder.image_inputs import TowerImage, padding_mask
from llava.model.multimodal_encoder.reducers.base import Signal
from llava.model.multimodal_encoder.reducers.registry import METHODS, parse_reduction, signals_of
from tests.conftest import TINY_LLAVA
from tests.model.reducers.golden import FOLDER, assert_agrees

PATCHES = 576
LONG = "There are several objects"  # more than CLIP's 77 tokens, of which we read the first


def setting(entry):
    """Write a case's parameters as ``mm_vision_token_reduce_func`` has them."""
    params = entry["params"]
    names = {"divprune": "DivPrune", "cdpruner": "CDPruner", "fastervlm": "FasterVLM", "hiprune": "HiPrune"}
    names |= {"tome_output": "ToMe", "scope": "SCOPE", "mmtok": "MMTok", "eadp": "EADP"}
    names |= {"visionzip": "VisionZip", "prumerge": "PruMerge", "prumerge_plus": "PruMerge+"}
    if entry["method"] == "visionzip":
        budget = params["dominant"] + params["contextual"]
    elif "ratio" in params:
        share = 2 if entry["method"] == "prumerge_plus" else 1
        budget = -1 if params["ratio"] is None else round(params["ratio"] * share * PATCHES)
    else:
        budget = params["count"]
    return f"{names[entry['method']]}:{budget}"


def cases():
    groups = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))["groups"]
    (entries,) = (group["cases"] for group in groups if group["kind"] == "e2e")
    return [
        pytest.param(entry, id=entry["key"])
        for entry in entries
        if not (entry["method"] in ("cdpruner", "eadp") and entry["question"].startswith(LONG))
    ]


@pytest.fixture(scope="module")
def outputs():
    return load_file(FOLDER / "e2e.outputs.safetensors")


@pytest.fixture(scope="module")
def encoder():
    from llava.assistant import Assistant

    return Assistant.load(str(TINY_LLAVA), device="cpu", conv_mode="vicuna_v1").encoder


@pytest.fixture(scope="module")
def encoded(encoder, pictures):
    return {
        name: encoder.encode([encoder.preprocess(picture)], [picture.size], list(Signal))[0]
        for name, picture in pictures.items()
    }


@pytest.mark.parametrize("entry", cases())
@torch.inference_mode()
def test_the_authors_tokens_come_out(entry, encoder, encoded, outputs):
    reducer = parse_reduction(setting(entry))
    (found,) = encoder.reduce([encoded[entry["image"]]], [entry["question"]], [reducer])
    tokens = found.crops
    if entry["method"] == "prumerge" and entry["visual_tokens"] == 1:
        # Without an outlier the authors keep no patch at all, and we the one that CLS attends to most.
        assert tokens.counts == (2,)
        return
    assert tokens.counts == (entry["visual_tokens"],)
    if "kept" in entry["outputs"]:
        kept = torch.unique(outputs[f"{entry['key']}/kept"].long())
        assert_agrees("kept", tokens.kept[0].nonzero().flatten(), kept)
    if "tokens" in entry["outputs"]:
        assert_agrees("tokens", tokens.packed, outputs[f"{entry['key']}/tokens"])
    if tokens.projected is not None:
        again = encoder._model.project_packed(tokens.packed)
        torch.testing.assert_close(tokens.projected, again, atol=1e-5, rtol=1e-4)


BUDGETS = {"PruMerge+": "64"}


@pytest.fixture(scope="module")
def three(encoder, pictures):
    """Three pictures that were seen together, and each that was seen alone."""
    chosen = list(pictures.values())[:3]
    pixels, sizes = [encoder.preprocess(one) for one in chosen], [one.size for one in chosen]
    together = encoder.encode(pixels, sizes, list(Signal))
    alone = [encoder.encode([own], [size], list(Signal))[0] for own, size in zip(pixels, sizes, strict=True)]
    return together, alone


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", ["40", "0.2"])
@torch.inference_mode()
def test_no_image_is_reduced_otherwise_for_its_neighbors(name, budget, three, encoder):
    reducer = parse_reduction(f"{name}:{BUDGETS.get(name, budget)}")
    texts = ["What is the color of the cat?", "Is there a bicycle?", "Describe the image in detail."]
    together = encoder.reduce(three[0], texts, [reducer] * 3)
    for found, image, text in zip(together, three[1], texts, strict=True):
        (alone,) = encoder.reduce([image], [text], [reducer])
        assert torch.equal(found.crops.packed, alone.crops.packed)
        assert torch.equal(found.crops.kept, alone.crops.kept)
        assert found.crops.packed.dtype == image.patches.dtype
    assert reducer == parse_reduction(str(reducer))


@pytest.mark.parametrize("name", METHODS)
@torch.inference_mode()
def test_a_budget_of_all_keeps_all_in_their_order(name, encoder, encoded):
    image = encoded["img2.png"]
    (found,) = encoder.reduce([image], ["What is it?"], [parse_reduction(f"{name}:576")])
    assert torch.equal(found.crops.packed, image.patches[0])


def test_what_the_tower_alone_cannot_do_is_said_in_a_sentence(encoder):
    pixels = torch.zeros(1, 3, 336, 336)
    tower = encoder.tower
    for setting, message in [
        ("DivPrune:64", "judges projected patches, and the vision tower alone has no projector"),
        ("MMTok:64", "reads the language model's word embeddings|judges projected patches"),
    ]:
        with pytest.raises(UserError, match=message):
            tower.reduce(*_seen(tower, pixels), ["What?"], parse_reduction(setting))
    with pytest.raises(UserError, match="reads the question, and none was given"):
        around = [encoder._surroundings((9, 9))]
        tower.reduce(*_seen(tower, pixels), None, parse_reduction("CDPruner:64"), around=around)
    with pytest.raises(UserError, match="attention of CLS in the selected layer, which was not asked for"):
        tower.reduce(*_seen(tower, pixels), None, parse_reduction("SCOPE:64"))


def _seen(tower, pixels):
    return tower.look(pixels)[0], pixels


def test_trim_alone_listens_to_nothing_and_loads_no_next_layer(encoder, monkeypatch):
    listened = []
    monkeypatch.setattr(clip_encoder, "read_signals", lambda *_: listened.append(1))
    trim = parse_reduction("TRIM:64")
    (image,) = encoder.encode([torch.zeros(1, 3, 336, 336)], [(336, 336)], signals_of([trim]))
    encoder.reduce([image], ["What is it?"], [trim])
    assert not listened and not image.signals


def test_projected_patches_are_not_projected_again(encoder, encoded, monkeypatch):
    rows, project = [], encoder._model.project_packed

    def count(packed):
        rows.append(len(packed))
        return project(packed)

    monkeypatch.setattr(encoder._model, "project_packed", count)
    with torch.inference_mode():
        reduced = encoder.reduce([encoded["img0.png"]], ["What?"], [parse_reduction("DivPrune:64")])
        (tokens,) = encoder.project(reduced)
        assert rows == [PATCHES]
        assert torch.equal(tokens, reduced[0].crops.projected)
    encoder.project(reduced)  # where gradients are wanted, the projector has to run
    assert rows == [PATCHES, 64]


@pytest.mark.parametrize("setting", ["DivPrune:64", "MMTok:64", "CDPruner:64", "SCOPE:64", "TRIM:64"])
def test_llavas_encode_images_has_all_that_a_method_asks_for(setting, encoder, pictures):
    model = encoder._model
    model.set_token_reduction(setting)
    try:
        tokens = model.encode_images(
            torch.cat([encoder.preprocess(one) for one in pictures.values()]), "What?"
        )
    finally:
        model.set_token_reduction("none")
    assert tokens.shape[:2] == (len(pictures), 65 if "TRIM" in setting else 64)


def test_what_is_trained_leaves_out_the_padding_that_an_answer_leaves_out(encoder):
    model = encoder._model
    wide = Image.new("RGB", (448, 200), "red")
    pixels = encoder.preprocess(wide)
    seen = []
    model.set_token_reduction("MMTok:60")
    encoder.observers.append(lambda reduced: seen.append(reduced[0].crops.kept))
    try:
        ids = torch.tensor([[1, -200, 306, 338]])
        model(ids, images=pixels, image_sizes=[wide.size], texts=["What is it?"], labels=ids)
    finally:
        encoder.observers.clear()
        model.set_token_reduction("none")
    (image,) = encoder.encode([pixels], [wide.size])
    (answered,) = encoder.reduce([image], ["What is it?"], [parse_reduction("MMTok:60")])
    assert torch.equal(seen[0], answered.crops.kept)
    inside = padding_mask(wide.size, 24, 14).flatten()
    assert not seen[0][0][inside].any()


@pytest.mark.parametrize("name", METHODS)
@torch.inference_mode()
def test_autocast_rounds_nothing_that_decides_which_patches_stay(name, encoder, encoded):
    """Training computes under autocast, and must keep what asking keeps."""
    reduced, reducer = [], parse_reduction(f"{name}:{BUDGETS.get(name, 40)}")
    for is_rounding in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_rounding):
            images = encoder.reduce(list(encoded.values())[:2], ["What is on the left?"] * 2, [reducer] * 2)
            reduced.append([image.crops for image in images])
    for plain, rounded in zip(*reduced, strict=True):
        assert torch.equal(plain.packed, rounded.packed)


@torch.inference_mode()
def test_what_was_computed_for_an_image_goes_with_it(encoder, encoded, monkeypatch):
    seen = []
    monkeypatch.setattr(
        clip_encoder, "TowerImage", lambda *rest: seen.append(weakref.ref(one := TowerImage(*rest))) or one
    )
    gc.disable()
    try:
        encoder.reduce(list(encoded.values())[:1], ["Why?"], [parse_reduction("DivPrune:32")])
        assert len(seen) == 1
        assert seen[0]() is None
    finally:
        gc.enable()
