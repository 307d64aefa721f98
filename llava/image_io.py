"""Images from files, bytes and URLs, as RGB: every color mode is read correctly, hostile files are refused.

Transparency is dropped (the color below it shows), because that is how the published models saw images.
"""

import contextlib
import io
import struct
import threading
import warnings
from pathlib import Path
from typing import IO, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from llava.errors import MissingFileError, UserError
from llava.image_download import download, is_url, without_password

# Formats that are images and nothing else: EPS, for example, Pillow would hand to an interpreter.
IMAGE_FORMATS: Final = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "AVIF",
)  # fmt: skip

_BLOCK_PIXELS: Final = 2**20  # of a wide image that are converted at a time


def load_image(source: str | Path) -> Image.Image:
    """Read an image from a file.

    Args:
        source: Path of the file.

    Returns:
        The image in mode RGB, turned upright as its EXIF orientation says.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it is a folder, cannot be read, is not a complete image, or has too many pixels.
    """
    path = Path(source)
    try:
        if not str(source):
            raise UserError("the path of the image is empty")
        if path.is_dir():
            raise UserError(f"{path} is a folder; an image file is expected")
        if path.exists() and not path.is_file():  # opening a pipe would wait for somebody to write to it
            raise UserError(f"{path} is a pipe or a device; an image file is expected")
        with path.open("rb") as file:
            return _read(file, str(path))
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no image file {path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{str(source)!r} is not a valid path of an image file: {error}") from error


def load_image_bytes(data: bytes, name: str = "the image") -> Image.Image:
    """Read an image from the bytes of an image file.

    Args:
        data: The whole file.
        name: What error messages call it.

    Returns:
        The image in mode RGB, turned upright as its EXIF orientation says.

    Raises:
        UserError: If the bytes are not a complete image, or it has too many pixels.
    """
    return _read(io.BytesIO(data), name)


def load_image_or_url(source: str) -> Image.Image:
    """Read an image from a file or from an ``http(s)`` URL; for command lines, whose user chose the URL.

    Args:
        source: Path or URL.

    Returns:
        The image in mode RGB, turned upright as its EXIF orientation says.

    Raises:
        UserError: As ``load_image``; for a URL also if it cannot be fetched within
            the limits of `llava.image_download`.
    """
    if not is_url(source):
        return load_image(source)
    return load_image_bytes(download(source), name=without_password(source))


def _read(file: IO[bytes], name: str) -> Image.Image:
    """Decode an open file; whatever a decoder raises on a stranger's bytes becomes one sentence."""
    try:
        with _QUIET, Image.open(file, formats=_known_formats()) as image:
            _check_pixels(image.size, name)
            image.load()
            return to_rgb(_turned_upright(image))
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(
            f"{name} is not an image in a known format (PNG, JPEG, WebP, GIF, BMP, TIFF, ...)"
        ) from error
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{name} has too many pixels: at most {Image.MAX_IMAGE_PIXELS:,} are accepted"
        ) from error
    except Exception as error:  # decoders raise anything from struct.error to MemoryError
        raise UserError(f"{name} is truncated or damaged: {error or type(error).__name__}") from error


def _known_formats() -> list[str]:
    """Those of the accepted formats that this build of Pillow reads."""
    Image.init()
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


class _Quiet:
    """Silences Pillow: it warns of sizes up to twice its limit, refused here, and of metadata nobody reads.

    What Python does about warnings is one setting for all threads: the first one in changes it, and the last
    one out changes it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._held = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._held.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._held.close()


_QUIET = _Quiet()


def _check_pixels(size: tuple[int, int], name: str) -> None:
    """Refuse an image beyond Pillow's limit, counting the square that it will be padded to.

    A strip of 65000 x 2 pixels is small as a file and 4 gigapixels as a square.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and max(size) ** 2 > limit:
        width, height = size
        raise UserError(
            f"{name} has too many pixels: {width} x {height}, as a square {max(size) ** 2:,}; "
            f"at most {limit:,} are accepted"
        )


def _turned_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; an image with damaged EXIF data stays as it is."""
    try:
        upright = ImageOps.exif_transpose(image)
        upright.format = image.format  # by which 16 bits are told from 8
        return upright
    except (OSError, SyntaxError, TypeError, ValueError, struct.error):
        return image


def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """Convert any mode to RGB; the wide ones are scaled to 8 bits, where Pillow would clip them to white.

    Every image goes through this, wherever it comes from, so that a file and the same image in memory look
    alike to the model. One in RGB is returned as it is.

    Args:
        image: An image, or its values as an array: uint8 (height, width), (height, width, 3) or (height,
            width, 4) with transparency, or uint16 (height, width).

    Raises:
        UserError: If it is anything else.
    """
    if isinstance(image, np.ndarray):
        image = _of_array(image)
    if not isinstance(image, Image.Image):
        raise UserError(
            f"an image is {type(image).__name__}; accepted: an image of Pillow, its values as a NumPy array, "
            "or what load_image returns for a path"
        )
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the direct way, which gives the same colors
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise UserError(f"an image of mode {image.mode} cannot be converted to RGB: {error}") from error


def _of_array(values: np.ndarray) -> Image.Image:
    """Make an image of an array of values, (height, width) or (height, width, 3 or 4).

    Raises:
        UserError: If the array is not one of those that `to_rgb` accepts.
    """
    is_colored = values.ndim == 3 and values.shape[2] in (3, 4) and values.dtype == np.uint8
    is_gray = values.ndim == 2 and values.dtype in (np.uint8, np.uint16)
    if not (is_colored or is_gray) or 0 in values.shape:
        raise UserError(
            f"an image is an array of shape {values.shape} and type {values.dtype}; accepted: uint8 (height, "
            "width), (height, width, 3) or (height, width, 4), or uint16 (height, width)"
        )
    return Image.fromarray(values)


def _white_level(image: Image.Image) -> float | None:
    """Value of white in an image of mode I, I;16 or F; ``None`` where nothing says so and the range must do.

    PNG and PGM define 16 bits. In a TIFF of 32-bit or floating-point numbers white is a convention: the
    smallest of the usual ones that holds all values.
    """
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        return 65535.0
    darkest, brightest = image.getextrema()
    conventions = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    if not isinstance(darkest, float | int) or not isinstance(brightest, float | int) or darkest < 0:
        return None
    return next((white for white in conventions if brightest <= white), None)


def _to_8_bits(image: Image.Image) -> np.ndarray:
    """Scale the gray values of an image of mode I, I;16 or F to 0..255, in blocks of rows to save memory.

    Returns:
        Gray values, uint8 (height, width).
    """
    values = np.asarray(image)
    rows = max(1, _BLOCK_PIXELS // values.shape[1])
    blocks = [slice(start, start + rows) for start in range(0, len(values), rows)]
    black, white = 0.0, _white_level(image)
    if white is None:  # nothing says what is white: the values' own range is stretched
        black = min(_finite(values[block]).min() for block in blocks)
        white = max(_finite(values[block]).max() for block in blocks) - black or 1.0
    gray = np.empty(values.shape, dtype=np.uint8)
    for block in blocks:
        gray[block] = np.rint((_finite(values[block]) - black) * (255.0 / white)).clip(0, 255)
    return gray


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64))
