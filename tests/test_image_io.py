"""Pictures of every kind are read as RGB; everything that is no picture is refused in one sentence."""

import http.server
import io
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava import image_io
from llava.errors import MissingFileError, UserError
from llava.image_io import load_image, load_image_bytes, load_image_or_url

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def file_bytes(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def read_back(image: Image.Image, file_format: str = "PNG", **options: object) -> np.ndarray:
    loaded = load_image_bytes(file_bytes(image, file_format, **options))
    assert loaded.mode == "RGB"
    return np.asarray(loaded)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_a_red_picture_is_red_in_every_color_mode(mode: str):
    file_format = "TIFF" if mode == "CMYK" else "PNG"
    pixels = read_back(Image.new("RGB", (5, 3), RED).convert(mode), file_format)
    assert pixels.shape == (3, 5, 3)
    assert (pixels == RED).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "PA", "I;16"])
def test_gray_pictures_become_three_equal_channels(mode: str):
    values = np.array([[0, 255], [255, 0]], np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(values).convert(mode)
    pixels = read_back(image, "TIFF" if mode == "PA" else "PNG")
    assert (pixels == values[..., None]).all()


def test_transparency_is_dropped_as_in_the_published_training():
    half_transparent_red = Image.new("RGBA", (2, 2), (*RED, 10))
    assert (read_back(half_transparent_red) == RED).all()


def test_a_palette_with_transparency_is_read_without_a_warning():
    image = Image.new("RGB", (4, 4), RED).quantize(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read_back(image, transparency=b"\x00\x80\xff\xff") == RED).all()


def test_sixteen_bits_are_scaled_not_clipped_to_white():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16)
    for file_format in ("PNG", "TIFF"):
        pixels = read_back(Image.fromarray(ramp), file_format)[..., 0]
        assert np.abs(pixels.astype(int) - expected).max() == 0


def test_a_sixteen_bit_pgm_is_scaled():
    data = b"P5 2 1 65535\n" + np.array([0, 32896], ">u2").tobytes()
    assert np.asarray(load_image_bytes(data))[0, :, 0].tolist() == [0, 128]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 128.0, 255.0], [0, 128, 255]),
        ([0.0, 65535.0, 257.0], [0, 255, 1]),
        ([-10.0, 0.0, 10.0], [0, 128, 255]),
        ([0.0, 1e6, float("nan")], [0, 255, 0]),
    ],
)
def test_floating_point_pictures_use_the_usual_white_levels(values: list[float], expected: list[int]):
    image = Image.fromarray(np.array([values], np.float32))
    assert read_back(image, "TIFF")[0, :, 0].tolist() == expected


def test_integers_of_32_bits_use_the_usual_white_levels():
    assert read_back(Image.fromarray(np.array([[0, 255]], np.int32)), "TIFF")[0, :, 0].tolist() == [0, 255]
    assert read_back(Image.fromarray(np.array([[0, 65535]], np.int32)), "TIFF")[0, :, 0].tolist() == [0, 255]
    assert read_back(Image.fromarray(np.array([[-5, 2**30]], np.int32)), "TIFF")[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int):
    upright = np.zeros((2, 3, 3), np.uint8)
    upright[0, 0] = 255  # the white corner shows which way is up
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: np.rot90,
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))
    assert (read_back(stored, exif=exif.tobytes()) == upright).all()


def test_damaged_exif_data_do_not_hide_the_picture():
    assert (read_back(Image.new("RGB", (2, 2), RED), "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff") == RED).all()


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, BLACK)]
    data = file_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(load_image_bytes(data))[0, 0].tolist() == list(RED)


def test_a_file_is_read_by_path_or_string(tmp_path: Path):
    path = tmp_path / "ä picture.png"
    Image.new("RGB", (3, 2), RED).save(path)
    assert load_image(path).size == load_image(str(path)).size == load_image_or_url(str(path)).size == (3, 2)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(MissingFileError, match="there is no image file .*nowhere.png"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "nowhere.png")


def test_a_folder_an_empty_path_and_an_impossible_one_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(UserError, match="is empty"):
        load_image("")
    with pytest.raises(UserError, match="no path"):
        load_image("a\0b.png")
    with pytest.raises(UserError, match="cannot be read"):
        load_image("x" * 5000)


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path):
    path = tmp_path / "notes.png"
    for content in (b"", b"just words", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"notes\.png is not an image in a known format"):
            load_image(path)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
def test_a_truncated_file_is_refused(file_format: str):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = file_bytes(Image.fromarray(noise), file_format)
    with pytest.raises(UserError, match="truncated or damaged|not an image"):
        load_image_bytes(data[: len(data) // 2])


def test_a_strip_is_measured_as_the_square_it_would_be_padded_to():
    strip = file_bytes(Image.new("1", (65000, 2)))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"65000 x 2, as a square 4,225,000,000; at most 89,478,485"):
        load_image_bytes(strip)
    assert time.monotonic() - started < 1  # nothing of that size was allocated


def test_pillows_limit_is_the_limit_and_gives_no_warning(monkeypatch: pytest.MonkeyPatch):
    data = file_bytes(Image.new("L", (30, 20)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for limit in (
            899,
            500,
            100,
        ):  # above Pillow's own limit by the square only, by once, by more than twice
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            with pytest.raises(UserError, match=f"too many pixels.*at most {limit}"):
                load_image_bytes(data)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
        assert load_image_bytes(data).size == (30, 20)


PICTURE = file_bytes(Image.new("RGB", (8, 6), RED))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one picture, and the ways in which a server can misbehave."""

    def do_GET(self):
        name, _, rest = self.path.strip("/").partition("/")
        getattr(self, f"get_{name}")(rest)

    def reply(self, body: bytes, status: int = 200, **headers: str):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def get_picture(self, _: str):
        self.reply(PICTURE, Content_Length=str(len(PICTURE)))

    def get_page(self, _: str):
        self.reply(b"<html>no picture</html>", Content_Type="image/png")

    def get_missing(self, _: str):
        self.reply(b"", 404)

    def get_hops(self, rest: str):
        left = int(rest)
        self.reply(b"", 302, Location=f"/hops/{left - 1}" if left > 1 else "/picture")

    def get_elsewhere(self, _: str):
        self.reply(b"", 302, Location="file:///etc/hostname")

    def get_endless(self, _: str):
        self.reply(PICTURE)
        try:
            while True:
                self.wfile.write(bytes(2**16))
        except OSError:
            return

    def get_drip(self, where: str):
        """One byte at a time, of the body or already of the headers: no single wait is long."""
        if where == "body":
            self.reply(b"")
        try:
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.02)
        except OSError:
            return

    def get_silent(self, _: str):
        time.sleep(1)

    def log_message(self, *_: object):
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[Callable[[str], str]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield lambda path: f"http://127.0.0.1:{server.server_port}/{path}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("path", ["picture", f"hops/{image_io.MAX_REDIRECTS}"])
def test_a_picture_is_fetched_from_its_url(site: Callable[[str], str], path: str):
    assert load_image_or_url(site(path)).size == (8, 6)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("page", "is not an image in a known format"),
        ("missing", "the server answers with status 404"),
        (f"hops/{image_io.MAX_REDIRECTS + 1}", "redirects more than 5 times"),
        ("elsewhere", "cannot be fetched"),
        ("endless", "is larger than 1 MiB"),
        ("drip/body", r"takes longer than 0\.3 seconds"),
        ("drip/headers", r"takes longer than 0\.3 seconds"),
        ("silent", r"no answer for 0\.2 seconds"),
    ],
)
def test_what_is_no_picture_within_the_limits_is_refused(
    site: Callable[[str], str], path: str, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(image_io, "MAX_DOWNLOAD_BYTES", 2**20)
    if path.startswith("drip"):
        monkeypatch.setattr(image_io, "DOWNLOAD_TIMEOUT", 0.3)
    if path == "silent":
        monkeypatch.setattr(image_io, "SILENCE_TIMEOUT", 0.2)
    with pytest.raises(UserError, match=reason) as caught:
        load_image_or_url(site(path))
    assert site(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_url_that_leads_nowhere_is_refused():
    with pytest.raises(UserError, match="no connection to the server"):
        load_image_or_url("http://127.0.0.1:9/x.png")
    with pytest.raises(UserError, match="cannot be fetched"):
        load_image_or_url("http://")


def test_only_command_lines_read_urls(site: Callable[[str], str]):
    with pytest.raises(MissingFileError):
        load_image(site("picture"))
