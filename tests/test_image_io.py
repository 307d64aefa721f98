"""Pictures of every kind are read as RGB; everything that is no picture is refused in one sentence."""

import io
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava import image_io
from llava.errors import MissingFileError, UserError
from llava.image_io import load_image, load_image_bytes, load_image_or_url, to_rgb

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


def test_a_mode_that_pillow_does_not_convert_is_refused():
    with pytest.raises(UserError, match="an image of mode La cannot be converted to RGB"):
        to_rgb(Image.new("La", (2, 2)))


def test_sixteen_bits_are_scaled_not_clipped_to_white():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16)
    for file_format in ("PNG", "TIFF"):
        pixels = read_back(Image.fromarray(ramp), file_format)[..., 0]
        assert np.abs(pixels.astype(int) - expected).max() == 0


def test_a_sixteen_bit_pgm_is_scaled():
    data = b"P5 2 1 65535\n" + np.array([0, 32896], ">u2").tobytes()
    assert np.asarray(load_image_bytes(data))[0, :, 0].tolist() == [0, 128]
    dark = b"P5 2 1 65535\n" + np.array([200, 200], ">u2").tobytes()
    assert np.asarray(load_image_bytes(dark))[0, :, 0].tolist() == [1, 1]  # as the same image in memory
    assert np.asarray(to_rgb(Image.open(io.BytesIO(dark))))[0, :, 0].tolist() == [1, 1]


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
    with pytest.raises(UserError, match="not a valid path"):
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


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is a pipe or a device"):
        load_image(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"/dev/zero is a pipe or a device"):
        load_image("/dev/zero")


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_wide_picture_is_converted_in_blocks(mode: str, monkeypatch: pytest.MonkeyPatch):
    """The values of one block of rows are those of the whole."""
    ramp = np.arange(-3 if mode != "I;16" else 0, 60, dtype={"I;16": "u2", "I": "i4", "F": "f4"}[mode])
    image = Image.fromarray(ramp[:60].reshape(12, 5) * (1000 if mode == "I;16" else 1))
    expected = image_io._to_8_bits(image)
    monkeypatch.setattr(image_io, "_BLOCK_PIXELS", 11)
    assert np.array_equal(image_io._to_8_bits(image), expected)
    assert expected.max() == 255 or mode == "I;16"


def test_the_largest_16_bit_picture_takes_less_than_a_gibibyte(tmp_path: Path):
    """174 KB on disk took 2.9 GB; 8 bytes a pixel were measured: 2 of the file, 1 gray, 4 of Pillow's RGB."""
    path = tmp_path / "wide.png"
    Image.fromarray(np.zeros((9459, 9459), dtype=np.uint16)).save(path)
    program = (
        "import resource, sys; from llava.image_io import load_image;"
        "before = resource.getrusage(0).ru_maxrss;"
        "load_image(sys.argv[1]); print(resource.getrusage(0).ru_maxrss - before)"
    )
    grown = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 2**20  # KiB


def test_threads_that_read_at_once_leave_warnings_as_they_were(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(file_bytes(Image.new("RGB", (300, 300), RED)))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(load_image, [path] * 200))
    assert warnings.filters == before
