"""One way from a request to embeddings: the reducer is an argument, steps run once, threads share it."""

import copy
import threading
import time

import pytest
import torch

from llava.assistant import Assistant
from llava.engine.base import Generation
from llava.messages import Request
from llava.model.multimodal_encoder import clip_encoder
from llava.model.multimodal_encoder.reducers.registry import parse_reduction
from tests.conftest import TINY_LLAVA

SHORT = Generation(max_new_tokens=4)
ANYRES = {
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[672, 672]],
    "mm_patch_merge_type": "spatial",
}


@pytest.mark.parametrize(
    ("own", "asked", "tokens"), [("none", "TRIM:10", 5 * 11), ("TRIM:10", "none", 5 * 576)]
)
def test_crops_are_joined_as_the_requests_reducer_needs_it(own, asked, tokens, checkpoint_copy, pictures):
    """On a grid if they are not reduced, in a row if they are, whatever the model's own reducer."""
    folder = checkpoint_copy(**ANYRES, mm_vision_token_reduce_func=own)
    assistant = Assistant.load(str(folder), device="cpu")
    image = pictures["img1.png"]
    (answer,) = assistant.answer_all([Request.ask("What?", image, token_reduction=asked, generation=SHORT)])
    assert answer.cost.visual_tokens == tokens
    other = Assistant.load(str(folder), device="cpu", token_reduction=asked)
    encoders = [assistant.model.prompt_encoder, other.model.prompt_encoder]
    embedded = []
    for encoder in encoders:
        (encoded,) = encoder.encode([encoder.preprocess(image)], [image.size])
        (tokens_of_image,) = encoder.project(encoder.reduce([encoded], ["What?"], [parse_reduction(asked)]))
        embedded.append(tokens_of_image)
    assert torch.equal(*embedded)


def test_the_projector_runs_once_for_a_batch_of_any_reducers(loaded, pictures, monkeypatch):
    encoder = loaded[1].prompt_encoder
    images = list(pictures.values())
    calls = []
    loaded[1].get_model().mm_projector.register_forward_hook(lambda *_: calls.append(1))
    encoded = encoder.encode(
        [encoder.preprocess(image) for image in images], [image.size for image in images]
    )
    reducers = [parse_reduction(("TRIM:9", "none", "TRIM:-1")[i % 3]) for i in range(len(images))]
    together = encoder.project(encoder.reduce(encoded, ["What?"] * len(images), reducers))
    assert len(calls) == 1
    for i, reducer in enumerate(reducers):
        (alone,) = encoder.project(encoder.reduce([encoded[i]], ["What?"], [reducer]))
        # The worst difference seen: 0; a matrix product may round otherwise in a larger batch.
        torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-6)


def test_no_images_need_no_tower(loaded):
    encoder = loaded[1].prompt_encoder
    assert encoder.encode([], []) == encoder.reduce([], [], []) == encoder.project([]) == []


def test_threads_share_the_text_encoder_and_what_it_remembers(pictures):
    """The first thread that needs the text half loads it, and no embedding is lost or mixed up."""
    assistant = Assistant.load(str(TINY_LLAVA), device="cpu")
    tower = assistant.model.get_vision_tower()
    assert tower.text_tower is None
    texts = [f"question {i}" for i in range(40)]
    found, mixed_up, start = {}, [], threading.Barrier(8)

    def ask(thread):
        start.wait()
        for text in texts[thread:] + texts[:thread]:
            embedding = tower.encode_texts([text])[0]
            tower.set_token_reduction(("TRIM:5", "none")[thread % 2])
            if not torch.equal(found.setdefault(text, embedding), embedding):
                mixed_up.append(text)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mixed_up == []
    assert found.keys() == set(texts)
    alone = Assistant.load(str(TINY_LLAVA), device="cpu", token_reduction="TRIM:-1").model.get_vision_tower()
    assert all(torch.equal(found[text], alone.encode_texts([text])[0]) for text in texts)


def test_the_text_half_is_loaded_once_for_many_threads(monkeypatch):
    tower = Assistant.load(str(TINY_LLAVA), device="cpu").model.get_vision_tower()
    loads, start = [], threading.Barrier(8)
    load = clip_encoder.load_text_half

    def slow_load(*arguments):
        loads.append(1)
        time.sleep(0.1)
        return load(*arguments)

    monkeypatch.setattr(clip_encoder, "load_text_half", slow_load)
    threads = [
        threading.Thread(target=lambda i=i: (start.wait(), tower.encode_texts([f"text {i}"])))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1


def test_a_model_can_be_copied(loaded):
    """Averages of weights and the like are kept in copies; what locks threads out cannot be copied."""
    copied = copy.deepcopy(loaded[1])
    assert copied.prompt_encoder._model is copied
