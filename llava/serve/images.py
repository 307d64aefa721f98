"""Images that requests carry, as base64 or data URLs: decoded within limits; nothing is fetched or opened."""

from __future__ import annotations

import base64
import binascii
import re

from PIL import Image

from llava.errors import UserError
from llava.image_io import load_image_bytes

MAX_IMAGE_BYTES = 20 * 2**20  # of an image file
MAX_IMAGES = 8  # of one request
_DATA_URL = re.compile(r"data:image/[\w.+-]+(;[\w.+=-]+)*;base64,", re.IGNORECASE)


def image_of_base64(text: str, name: str = "the image") -> Image.Image:
    """Return an image from the base64 text of an image file.

    Args:
        text: With or without line breaks.
        name: What error messages call it.

    Raises:
        UserError: If it is too large, no base64, or no image that can be read.
    """
    if len(text) > MAX_IMAGE_BYTES * 4 // 3 + 4096:
        raise UserError(f"{name} is larger than {MAX_IMAGE_BYTES // 2**20} MiB, the most that is accepted")
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{name} is not base64: {error}") from error
    if len(data) > MAX_IMAGE_BYTES:
        raise UserError(f"{name} is larger than {MAX_IMAGE_BYTES // 2**20} MiB, the most that is accepted")
    return load_image_bytes(data, name)


def image_of_data_url(url: str, name: str = "the image") -> Image.Image:
    """Return an image from a URL such as ``data:image/png;base64,...``.

    Raises:
        UserError: If it is another URL, or as `image_of_base64`.
    """
    match = _DATA_URL.match(url)
    if match is None:
        raise UserError(f"{name} is {url!r:.60}; accepted: data:image/...;base64,...")
    return image_of_base64(url[match.end() :], name)
