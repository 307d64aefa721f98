"""Pictures from files, bytes and URLs, as RGB: every color mode is read correctly, hostile files are refused.

Transparency is dropped (the color below it shows), because that is how the published models saw pictures.
"""

import contextlib
import io
import struct
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import IO, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from llava.errors import MissingFileError, UserError

# Formats that are pictures and nothing else: EPS, for example, Pillow would hand to an interpreter.
PICTURE_FORMATS: Final = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "AVIF",
)  # fmt: skip

MAX_DOWNLOAD_BYTES: Final = 32 * 2**20
DOWNLOAD_TIMEOUT: Final = 30.0  # seconds for the whole download
SILENCE_TIMEOUT: Final = 10.0  # seconds until a server that says nothing is given up
MAX_REDIRECTS: Final = 5
_CHUNK_BYTES: Final = 2**16


def load_image(source: str | Path) -> Image.Image:
    """Read a picture from a file.

    Args:
        source: Path of the file.

    Returns:
        The picture in mode RGB, turned upright as its EXIF orientation says.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it is a folder, cannot be read, is no complete picture, or has too many pixels.
    """
    path = Path(source)
    try:
        if not str(source):
            raise UserError("the path of the image is empty")
        if path.is_dir():
            raise UserError(f"{path} is a folder; an image file is expected")
        with path.open("rb") as file:
            return _read(file, str(path))
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no image file {path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{str(source)!r} is no path of an image file: {error}") from error


def load_image_bytes(data: bytes, name: str = "the image") -> Image.Image:
    """Read a picture from the bytes of an image file.

    Args:
        data: The whole file.
        name: What error messages call it.

    Returns:
        The picture in mode RGB, turned upright as its EXIF orientation says.

    Raises:
        UserError: If the bytes are no complete picture, or it has too many pixels.
    """
    return _read(io.BytesIO(data), name)


def is_url(source: str) -> bool:
    """Whether a command-line value is the ``http(s)`` URL of a picture rather than a path."""
    return source.lower().startswith(("http://", "https://"))


def load_image_or_url(source: str) -> Image.Image:
    """Read a picture from a file or from an ``http(s)`` URL; for command lines, whose user chose the URL.

    Args:
        source: Path or URL.

    Returns:
        The picture in mode RGB, turned upright as its EXIF orientation says.

    Raises:
        UserError: As ``load_image``; for a URL also if it cannot be fetched within
            ``DOWNLOAD_TIMEOUT`` seconds, ``MAX_DOWNLOAD_BYTES`` and ``MAX_REDIRECTS``.
    """
    return load_image_bytes(_download(source), name=source) if is_url(source) else load_image(source)


def _read(file: IO[bytes], name: str) -> Image.Image:
    """Decode an open file; whatever a decoder raises on a stranger's bytes becomes one sentence."""
    try:
        with _without_warnings(), Image.open(file, formats=_known_formats()) as image:
            _check_pixels(image.size, name)
            image.load()
            return _to_rgb(_turned_upright(image))
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
    return [name for name in PICTURE_FORMATS if name in Image.OPEN]


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of sizes up to twice its limit, refused here, and of metadata that nobody reads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield


def _check_pixels(size: tuple[int, int], name: str) -> None:
    """Refuse a picture beyond Pillow's limit, counting the square that it will be padded to.

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
    """Apply the EXIF orientation; a picture with damaged EXIF data stays as it is."""
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, TypeError, ValueError, struct.error):
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB; the wide ones are scaled to 8 bits, where Pillow would clip them to white."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bits(np.asarray(image), _white_level(image))).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the direct way, which gives the same colors
    return image.convert("RGB")


def _white_level(image: Image.Image) -> float | None:
    """Value of white in a picture of mode I, I;16 or F; ``None`` where nothing says so and the range must do.

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


def _to_8_bits(values: np.ndarray, white: float | None) -> np.ndarray:
    """Scale gray values to 0..255.

    Args:
        values: Gray values of any numeric type, (height, width).
        white: Value that becomes 255, with 0 staying 0; ``None`` stretches the values' own range.

    Returns:
        Gray values, uint8 (height, width).
    """
    gray = np.nan_to_num(values.astype(np.float64))
    if white is None:
        gray = gray - gray.min()
        white = gray.max() or 1.0
    return np.rint(gray * (255.0 / white)).clip(0, 255).astype(np.uint8)


def _download(url: str) -> bytes:
    """Fetch a URL within the limits on bytes, time and redirects.

    Raises:
        UserError: If it cannot be fetched, or not within the limits.
    """
    body: Future[bytes] = Future()

    def fetch() -> None:
        try:
            body.set_result(_fetch(url))
        except Exception as error:  # noqa: BLE001 - handed on to the caller
            body.set_exception(error)

    # The library's timeouts restart with every byte; a server that lets them drip is left to its own thread,
    # not to an executor's, for which Python would wait at its end.
    threading.Thread(target=fetch, daemon=True).start()
    done, _ = wait([body], timeout=DOWNLOAD_TIMEOUT)
    if not done:
        raise UserError(f"{url} takes longer than {DOWNLOAD_TIMEOUT:g} seconds, the limit for a picture")
    return body.result()


def _fetch(url: str) -> bytes:
    """Fetch a URL within the limits on bytes, silence and redirects.

    Raises:
        UserError: If it cannot be fetched, or not within the limits.
    """
    import requests

    headers = {"User-Agent": "llava"}
    with requests.Session() as session:
        session.max_redirects = MAX_REDIRECTS
        try:
            with session.get(url, stream=True, timeout=SILENCE_TIMEOUT, headers=headers) as response:
                response.raise_for_status()
                return _body(response.iter_content(_CHUNK_BYTES), url)
        except requests.TooManyRedirects as error:
            raise UserError(f"{url} redirects more than {MAX_REDIRECTS} times") from error
        except requests.HTTPError as error:
            status = error.response.status_code
            raise UserError(f"{url} cannot be fetched: the server answers with status {status}") from error
        except requests.Timeout as error:
            raise UserError(f"{url} cannot be fetched: no answer for {SILENCE_TIMEOUT:g} seconds") from error
        except (requests.RequestException, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{url} cannot be fetched: {_reason(error)}") from error


def _body(chunks: Iterator[bytes], url: str) -> bytes:
    """Join the chunks of a response.

    Raises:
        UserError: If they grow beyond the limit.
    """
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > MAX_DOWNLOAD_BYTES:
            raise UserError(
                f"{url} is larger than {MAX_DOWNLOAD_BYTES // 2**20} MiB, the limit for a picture"
            )
    return bytes(body)


def _reason(error: Exception) -> str:
    """The plain cause in an error of requests, whose own text nests the errors of three libraries."""
    from requests import ConnectionError as NoConnection

    return "no connection to the server" if isinstance(error, NoConnection) else str(error)
