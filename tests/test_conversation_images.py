"""Images of a conversation, as LLaVA's pages show them and send them to a worker."""

import base64
import io
from typing import Any

import pytest
from PIL import Image

from llava.conversation import conv_templates
from llava.conversation_images import process_image
from llava.errors import UserError

RED = Image.new("RGB", (40, 20), (255, 0, 0))


def prepare(image: Image.Image, mode: str) -> Image.Image:
    prepared = process_image(image, mode, return_pil=True)
    assert isinstance(prepared, Image.Image)
    return prepared


def decode(text: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize(
    ("mode", "size"), [("Pad", (40, 40)), ("Default", (40, 20)), ("Crop", (40, 20)), ("Resize", (336, 336))]
)
def test_an_image_is_prepared_as_its_mode_says(mode: str, size: tuple[int, int]):
    image = prepare(RED, mode)
    assert image.size == size
    assert image.getpixel((20, size[1] // 2)) == (255, 0, 0)
    file = decode(process_image(RED, mode))
    assert (file.format, file.tobytes()) == ("PNG", image.tobytes())


def test_padding_has_the_mean_color_of_clip():
    assert prepare(RED, "Pad").getpixel((0, 0)) == (122, 116, 104)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1344, 500), (1344, 500)),
        ((2688, 1344), (1344, 672)),  # the longer side is the limit
        ((1344, 2688), (672, 1344)),
        ((1400, 1400), (672, 672)),  # the shorter side is
        ((2000, 100), (1340, 67)),
        ((3000, 2), (1344, 1)),
    ],
)
def test_a_large_image_is_made_smaller(size: tuple[int, int], expected: tuple[int, int]):
    assert prepare(Image.new("RGB", size), "Default").size == expected


def test_another_mode_is_refused():
    with pytest.raises(UserError, match="'Stretch'; accepted: Pad, Default, Crop, Resize"):
        process_image(RED, "Stretch")


def test_a_conversation_gives_its_images_and_a_page_of_gradio():
    chat = conv_templates["v0"].copy()  # begins with two turns of example
    chat.append_message(chat.roles[0], ("<image>\nWhat color is it?", RED, "Pad"))
    chat.append_message(chat.roles[1], "red")
    chat.append_message(chat.roles[0], "Sure?")
    chat.append_message(chat.roles[1], None)
    (image,) = chat.get_images(return_pil=True)
    assert image.size == (40, 40)
    assert decode(chat.get_images()[0]).size == (40, 40)
    (question, answer), second = chat.to_gradio_chatbot()
    file, words = question.removeprefix('<img src="data:image/jpeg;base64,').split(
        '" alt="image of the user">'
    )
    assert decode(file).size == (40, 20)
    assert (words, answer, second) == ("What color is it?", "red", ["Sure?", None])
    assert chat.process_image(RED, "Pad", return_pil=True).size == (40, 40)
