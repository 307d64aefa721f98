"""What is asked is checked when it is made, before any image is read."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.engine.base import Generation
from llava.errors import MissingFileError, UserError
from llava.image_io import load_image
from llava.messages import Answer, Cost, Failure, Message, Request, answer_of, read_image
from llava.mm_utils import process_images
from llava.model.multimodal_encoder.token_reduction import Trim
from tests.conftest import GOLDEN

IMAGE = Image.new("RGB", (4, 4))


def never():
    raise AssertionError("read too early")


def test_a_setting_is_read_when_the_request_is_made():
    assert isinstance(Request.ask("What?", never, token_reduction="TRIM:-1").token_reduction, Trim)
    with pytest.raises(UserError, match="accepted"):
        Request.ask("What?", never, token_reduction="TRIM:0")
    with pytest.raises(UserError, match="max_new_tokens"):
        Request.ask("What?", never, generation=Generation(max_new_tokens=0))


@pytest.mark.parametrize(
    "roles",
    [[], ["assistant"], ["user", "assistant"], ["user", "user"], ["system"], ["user", "system", "user"]],
)
def test_turns_alternate_and_end_with_the_users(roles):
    with pytest.raises(UserError, match="user and assistant by turns"):
        Request(tuple(Message(role, "text") for role in roles))


@pytest.mark.parametrize("roles", [["user"], ["system", "user"], ["system", "user", "assistant", "user"]])
def test_conversations_that_can_be_continued(roles):
    assert len(Request([Message(role, "text") for role in roles]).messages) == len(roles)


def test_only_the_user_shows_images():
    assert Message("user", "text", (IMAGE,)).images == (IMAGE,)
    with pytest.raises(UserError, match="'assistant' has images"):
        Message("assistant", "text", (IMAGE,))
    with pytest.raises(UserError, match="from 'tool'; accepted: system, user, assistant"):
        Message("tool", "text")


def test_images_come_from_anywhere():
    assert read_image(IMAGE) is IMAGE
    assert read_image(lambda: IMAGE) is IMAGE
    assert read_image(GOLDEN / "img0.png").mode == "RGB"
    with pytest.raises(MissingFileError, match=r"nowhere\.png"):
        read_image("nowhere.png")


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")


def in_mode(mode):
    """A ramp from black to white in a color mode; wide modes have the values of 16 bits, or 0 to 1."""
    ramp = np.linspace(0, 1, 64 * 48).reshape(48, 64)
    if mode == "I;16":
        return Image.fromarray((ramp * 65535).astype("u2"))
    if mode == "I":
        return Image.fromarray((ramp * 65535).astype("i4"))
    if mode == "F":
        return Image.fromarray(ramp.astype("f4"))
    return Image.fromarray((ramp * 255).astype("u1")).convert(mode)


@pytest.mark.parametrize("mode", MODES)
def test_an_image_is_the_same_whichever_way_it_comes_in(mode, tmp_path):
    image, path = in_mode(mode), tmp_path / "image.tif"
    image.save(path)
    expected = np.asarray(load_image(path))
    assert 60 < expected.mean() < 200  # neither black nor white
    for source in (image, lambda: image, path, str(path)):
        assert np.array_equal(np.asarray(read_image(source)), expected)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    for ratio in (None, "pad"):
        config = SimpleNamespace(image_aspect_ratio=ratio)
        pixels = [process_images([one], processor, config) for one in (image, load_image(path))]
        assert torch.equal(*pixels)


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        (np.arange(48, dtype=np.uint8).reshape(4, 4, 3), "RGB"),
        (np.arange(64, dtype=np.uint8).reshape(4, 4, 4), "RGBA"),
        (np.arange(16, dtype=np.uint8).reshape(4, 4), "L"),
        (np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000, "I;16"),
    ],
)
def test_values_of_an_array_are_the_image_that_pillow_makes_of_them(values, mode):
    image = Image.fromarray(values)
    assert image.mode == mode
    assert read_image(values).tobytes() == read_image(image).tobytes()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"bytes", "an image is bytes"),
        ([Image.new("RGB", (2, 2))], "an image is list"),
        (torch.zeros(3, 2, 2), "an image is Tensor; accepted: an image of Pillow"),
        (np.zeros((2, 2, 3)), r"an array of shape \(2, 2, 3\) and type float64; accepted: uint8"),
        (np.zeros((3, 2, 2), dtype=np.uint8), r"an array of shape \(3, 2, 2\)"),
        (np.zeros((0, 2), dtype=np.uint8), r"an array of shape \(0, 2\)"),
    ],
)
def test_what_is_no_image_is_refused_by_its_type(source, message):
    with pytest.raises(UserError, match=message):
        read_image(source)


@pytest.mark.parametrize("text", [5, None, b"What?"])
def test_a_message_is_a_text(text):
    with pytest.raises(UserError, match=f"the text of a message is {type(text).__name__}; accepted: str"):
        Message("user", text)


@pytest.mark.parametrize("field", ["prompt", "clip_text", "template"])
def test_what_is_a_text_is_no_number(field):
    with pytest.raises(UserError, match=f"{field} is int; accepted: str, or None"):
        Request.ask("What?", IMAGE, **{field: 5})


def test_images_of_a_message_come_as_several():
    with pytest.raises(UserError, match="the images of a message are Image; accepted: a tuple"):
        Message("user", "What?", IMAGE)


def test_how_an_answer_is_written_is_no_dictionary():
    with pytest.raises(UserError, match="generation is dict; accepted: llava.Generation"):
        Request.ask("What?", generation={"temperature": 0})


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("max_new_tokens", "5", "a whole number"),
        ("max_new_tokens", 5.0, "a whole number"),
        ("max_new_tokens", None, "a whole number"),
        ("temperature", "hot", "a number"),
        ("top_p", "0.9", "a number"),
        ("num_beams", True, "a whole number"),
        ("stop", 5, "a text, or several"),
        ("stop", [5], "a text, or several"),
    ],
)
def test_settings_of_another_type_are_refused(name, value, accepted):
    with pytest.raises(UserError, match=f"^{name} is .*; accepted: {accepted}$"):
        Generation(**{name: value})


def test_what_was_answered_is_returned_and_a_failure_raises_its_error():
    answer = Answer("red", Cost(0, 0, 1, 0.0, 0.0, 0.0, 0.0), (), "stop")
    assert answer_of(answer) is answer
    with pytest.raises(UserError, match="no such image"):
        answer_of(Failure(UserError("no such image")))
