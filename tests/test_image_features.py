"""Encoded images are kept by their content, up to a bound, and change no answer."""

import numpy as np
import pytest
import torch
from PIL import Image

from llava.assistant import Assistant
from llava.engine.base import Generation
from llava.image_features import FeatureCache, content_key
from llava.messages import Request
from llava.model.prompt_encoder import EncodedImage
from tests.conftest import TINY_LLAVA, count_encodings

SHORT = Generation(max_new_tokens=6)


def encoded(mebibytes: float) -> EncodedImage:
    elements = int(mebibytes * 2**20 / 4)
    return EncodedImage(torch.zeros(elements - 4), torch.zeros(4), (1, 1))


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant.load(str(TINY_LLAVA), device="cpu", token_reduction="TRIM:-1")


def test_images_are_alike_if_all_their_pixels_are():
    image = Image.new("RGB", (4, 6), "red")
    assert content_key(image) == content_key(image.copy())
    other = image.copy()
    other.putpixel((3, 5), (255, 0, 1))
    assert content_key(image) != content_key(other)
    assert content_key(image) != content_key(Image.new("RGB", (6, 4), "red"))


def test_what_was_not_used_for_longest_goes_first():
    cache = FeatureCache(mebibytes=2)
    images = {name: encoded(0.9) for name in "abc"}
    cache.add("a", images["a"])
    cache.add("b", images["b"])
    assert cache.get("a") is images["a"]
    cache.add("c", images["c"])
    assert cache.get("b") is None
    assert cache.get("a") is images["a"]
    assert cache.get("c") is images["c"]
    assert cache.nbytes == images["a"].nbytes + images["c"].nbytes
    cache.add("huge", encoded(3))
    assert len(cache) == 2
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)


def test_an_image_is_encoded_once_however_it_comes_in(assistant, pictures, tmp_path, monkeypatch):
    counts = count_encodings(assistant, monkeypatch)
    image = pictures["img0.png"]
    image.save(tmp_path / "copy.png")
    sources = [image, image.copy(), tmp_path / "copy.png", np.asarray(image), lambda: image]
    answers = [assistant.answer("What is it?", source, SHORT) for source in sources]
    together = list(
        assistant.answer_all([Request.ask("What?", source, generation=SHORT) for source in sources])
    )
    assert counts == [1]
    assert len({answer.text for answer in answers}) == len({answer.text for answer in together}) == 1
    assert answers[1].cost.vision_ms < answers[0].cost.vision_ms


def test_a_file_that_has_changed_is_another_image(assistant, pictures, tmp_path, monkeypatch):
    counts = count_encodings(assistant, monkeypatch)
    path = tmp_path / "image.png"
    for name in ("img0.png", "img1.png"):
        pictures[name].save(path)
        found = assistant.answer("What is it?", path, SHORT)
        assert torch.equal(found.kept[0], assistant.answer("What is it?", pictures[name], SHORT).kept[0])
    assert counts == [1, 1]


def test_an_image_is_seen_anew_when_it_is_cropped_otherwise(assistant, pictures, monkeypatch):
    counts = count_encodings(assistant, monkeypatch)
    for ratio in ("pad", "square", "pad"):
        monkeypatch.setattr(assistant.model.config, "image_aspect_ratio", ratio)
        assistant.answer("What is it?", pictures["img2.png"], SHORT)
    assert counts == [1, 1]


def test_a_model_that_is_converted_answers_on(pictures):
    assistant = Assistant.load(str(TINY_LLAVA), device="cpu")
    for _ in range(2):  # the second one leaves its prefix in the cache
        assistant.answer("What is it?", pictures["img0.png"], SHORT)
    assistant.model.to(torch.bfloat16)
    assert assistant.answer("What is it?", pictures["img0.png"], SHORT).cost.new_tokens
    assert len(assistant.features) == 2
    assistant.clear_caches()
    assert len(assistant.features) == 0


def test_without_room_an_image_is_encoded_whenever_it_is_asked_about(pictures, monkeypatch):
    assistant = Assistant.load(str(TINY_LLAVA), device="cpu", image_cache_mib=0)
    counts = count_encodings(assistant, monkeypatch)
    for _ in range(2):
        list(assistant.answer_all([Request.ask(text, pictures["img0.png"]) for text in ("What?", "Why?")]))
    assert counts == [1, 1]


def test_a_conversation_goes_on_about_the_image_it_began_with(assistant, pictures, tmp_path):
    path = tmp_path / "image.png"
    pictures["img0.png"].save(path)
    chat = assistant.chat(path)
    chat.ask("What is it?", generation=SHORT)
    pictures["img1.png"].save(path)
    second = chat.ask("Is there a bicycle?", generation=SHORT)
    alone = assistant.answer("Is there a bicycle?", pictures["img0.png"], SHORT)
    assert torch.equal(second.kept[0], alone.kept[0])
