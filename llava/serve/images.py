"""Images that requests carry, as base64 or data URLs: decoded within limits; nothing is opened.

Fetched is only what a `RemoteImage` names, which a server has to be told to accept.
"""

from __future__ import annotations

import base64
import binascii
import re

from PIL import Image

from llava.errors import UserError
from llava.image_download import download
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
        raise too_large(name)
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{name} is not base64: {error}") from error
    if len(data) > MAX_IMAGE_BYTES:
        raise too_large(name)
    return load_image_bytes(data, name)


class RemoteImage:
    """An image behind a URL that a request names: fetched once, from a public address, and decoded when read.

    Args:
        url: Of the web.
        name: What error messages call it.
    """

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._data: bytes | None = None

    def fetch(self) -> None:
        """Fetch the image file.

        Raises:
            UserError: If it cannot be fetched, or not within the limits.
        """
        if self._data is None:
            data = download(self._url, public_only=True)
            if len(data) > MAX_IMAGE_BYTES:
                raise too_large(self._name)
            self._data = data

    def __call__(self) -> Image.Image:
        """Return the image.

        Raises:
            UserError: If it cannot be fetched or read.
        """
        self.fetch()
        assert self._data is not None
        return load_image_bytes(self._data, self._name)


def too_large(name: str) -> UserError:
    """Return the error about an image file of too many bytes."""
    return UserError(f"{name} is larger than {MAX_IMAGE_BYTES // 2**20} MiB, the most that is accepted")


def image_of_data_url(url: str, name: str = "the image") -> Image.Image:
    """Return an image from a URL such as ``data:image/png;base64,...``.

    Raises:
        UserError: If it is another URL, or as `image_of_base64`.
    """
    match = _DATA_URL.match(url)
    if match is None:
        raise UserError(f"{name} is {url!r:.60}; accepted: data:image/...;base64,...")
    return image_of_base64(url[match.end() :], name)
