"""Images of a conversation as LLaVA's web pages show them and send them to a worker."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import UserError
from llava.image_io import to_rgb

if TYPE_CHECKING:
    from llava.conversation import Conversation

MODES = ("Pad", "Default", "Crop", "Resize")
PADDING = (122, 116, 104)  # CLIP's mean color
RESIZED = (336, 336)


def process_image(
    image: Image.Image,
    image_process_mode: str,
    return_pil: bool = False,
    image_format: str = "PNG",
    max_len: int = 1344,
    min_len: int = 672,
) -> Image.Image | str:
    """Prepare an image for a worker.

    Args:
        image: Of any mode.
        image_process_mode: ``Pad`` makes it square, ``Resize`` 336 x 336 pixels; ``Default`` and ``Crop``
            leave it as it is.
        return_pil: Whether to return the image itself.
        image_format: Of the file in base64.
        max_len: Most pixels of the longer side; beyond, the image is made smaller.
        min_len: Then the most pixels of the shorter side.

    Returns:
        The image, or its file in base64.

    Raises:
        UserError: If the mode is unknown.
    """
    image = to_rgb(image)
    if image_process_mode not in MODES:
        raise UserError(f"an image's mode is {image_process_mode!r}; accepted: {', '.join(MODES)}")
    if image_process_mode == "Pad":
        side = max(image.size)
        square = Image.new("RGB", (side, side), PADDING)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    elif image_process_mode == "Resize":
        image = image.resize(RESIZED)
    if max(image.size) > max_len:
        aspect = max(image.size) / min(image.size)
        shorter = max(1, int(min(max_len / aspect, min_len, *image.size)))
        longer = min(max_len, int(shorter * aspect))
        image = image.resize((longer, shorter) if image.width > image.height else (shorter, longer))
    return image if return_pil else _to_base64(image, image_format)


def images_of(conversation: Conversation, return_pil: bool = False) -> list[Image.Image | str]:
    """Return the images of the user's turns, prepared as each turn says."""
    return [
        process_image(image, mode, return_pil=return_pil) for _, image, mode in _shown_images(conversation)
    ]


def to_chatbot(conversation: Conversation) -> list[list[str | None]]:
    """Return question and answer of every round, an image as an HTML element in front of its question."""
    pairs: list[list[str | None]] = []
    for index, (_, message) in enumerate(conversation.messages[conversation.offset :]):
        if index % 2:
            pairs[-1][1] = message
        else:
            pairs.append([_to_html(message) if isinstance(message, tuple) else message, None])
    return pairs


def _to_html(message: tuple[str, Image.Image, str]) -> str:
    words, image, _ = message
    file = process_image(image, "Default", image_format="JPEG")
    text = words.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    return f'<img src="data:image/jpeg;base64,{file}" alt="image of the user">{text}'


def _shown_images(conversation: Conversation) -> Iterator[tuple[str, Image.Image, str]]:
    """Yield text, image and mode of the user's turns that show an image."""
    for _, message in conversation.messages[conversation.offset :: 2]:
        if isinstance(message, tuple):
            yield message


def _to_base64(image: Image.Image, image_format: str) -> str:
    file = io.BytesIO()
    image.save(file, format=image_format)
    return base64.b64encode(file.getvalue()).decode("ascii")
