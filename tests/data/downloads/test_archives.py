"""Unpacking can be killed and repeated, refuses what is damaged, and converts what is no JPEG."""

import io
import random
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

from llava.data.downloads.archives import list_members, unpack, write_file
from llava.errors import UserError

CONTENTS = {f"pictures/{number}.jpg": bytes([number]) * 5000 for number in range(200)}
ROOT = Path(__file__).parents[2]
ARCHIVES = ["a.zip", "a.tar", "a.tar.gz", "a.TGZ"]


def write_archive(path: Path, contents: dict[str, bytes]) -> Path:
    """A zip or tar file, as its name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def unpack_all(path: Path, folder: Path, **options: Any) -> list[str]:
    targets = {folder / member.name: member for member in list_members(path)}
    return unpack(path, targets, "test", **options)


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("workers", [1, 4])
def test_every_file_is_unpacked_as_it_was(name: str, workers: int, tmp_path: Path):
    path = write_archive(tmp_path / name, CONTENTS)
    assert unpack_all(path, tmp_path / "out", workers=workers) == []
    found = {str(file.relative_to(tmp_path / "out")): file for file in (tmp_path / "out").rglob("*.*")}
    assert {name: file.read_bytes() for name, file in found.items()} == CONTENTS


@pytest.mark.parametrize("name", ARCHIVES)
def test_sizes_are_known_before_unpacking(name: str, tmp_path: Path):
    members = list_members(write_archive(tmp_path / name, {"folder/a.jpg": b"12345", "b.jpg": b""}))
    assert [(member.name, member.size, member.safe) for member in members] == [
        ("folder/a.jpg", 5, True),
        ("b.jpg", 0, True),
    ]


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "x/../../a.jpg", "..\\a.jpg"])
@pytest.mark.parametrize("archive", ["a.zip", "a.tar"])
def test_a_path_out_of_the_archive_is_not_safe(name: str, archive: str, tmp_path: Path):
    (member,) = list_members(write_archive(tmp_path / archive, {name: b"x"}))
    assert not member.safe


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_file_are_not_safe(kind: bytes, tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo("a.jpg")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    (member,) = list_members(tmp_path / "a.tar")
    assert not member.safe


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])  # a tar file may lose what lies behind its last file
def test_a_truncated_archive_is_one_sentence(name: str, share: float, tmp_path: Path):
    path = write_archive(
        tmp_path / name, {f"{number}.jpg": random.Random(number).randbytes(9999) for number in range(9)}
    )
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=f"{name} is not a complete archive|{name} cannot be unpacked"):
        unpack_all(path, tmp_path / "out")


def test_a_damaged_member_is_not_written(tmp_path: Path):
    path = write_archive(tmp_path / "a.zip", {"a.jpg": b"content " * 99})
    path.write_bytes(path.read_bytes().replace(b"content ", b"c0ntent ", 1))
    with pytest.raises(UserError, match=r"a\.zip is not a complete archive \(Bad CRC"):
        unpack_all(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from typing import Any
from llava.data.downloads.archives import write_file

def copy_half(stream, file):
    file.write(stream.read(2500))
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

shutil.copyfileobj = copy_half
with open(sys.argv[1], "rb") as stream:
    write_file(stream, Path(sys.argv[2]))
"""


def test_a_killed_process_leaves_no_half_file_under_the_final_name(tmp_path: Path):
    (tmp_path / "whole").write_bytes(b"x" * 5000)
    target = tmp_path / "out" / "a.jpg"
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "whole", target], check=False, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert [(file.name, file.stat().st_size) for file in target.parent.iterdir()] == [(".a.jpg.part", 2500)]
    with (tmp_path / "whole").open("rb") as stream:
        assert write_file(stream, target) is None
    assert [file.name for file in target.parent.iterdir()] == ["a.jpg"]
    assert target.stat().st_size == 5000


def test_a_failed_copy_leaves_nothing_and_keeps_what_was_there(tmp_path: Path):
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise OSError("the disk went away")
            return super().read(3)

    target = tmp_path / "a.jpg"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="went away"):
        write_file(Failing(b"new content"), target)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a.jpg": b"old"}


def encoded(kind: str, *colors: str) -> bytes:
    """A picture in a file format; several colors make an animation."""
    first, *others = (Image.new("RGB", (8, 6), color) for color in colors)
    data = io.BytesIO()
    if others:
        first.save(data, kind, save_all=True, append_images=others)
    else:
        first.save(data, kind)
    return data.getvalue()


@pytest.mark.parametrize(
    "content",
    [encoded("GIF", "red"), encoded("GIF", "red", "blue"), encoded("PNG", "red"), encoded("WEBP", "red")],
    ids=["gif", "animation", "png", "webp"],
)
def test_a_picture_in_another_format_becomes_a_jpeg_of_its_first_frame(content: bytes, tmp_path: Path):
    assert write_file(io.BytesIO(content), tmp_path / "a.jpg", as_jpeg=True) is None
    with Image.open(tmp_path / "a.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (8, 6))
        red, green, blue = ImageStat.Stat(image).mean
    assert red > 250 and green < 5 and blue < 5  # (254, 0, 0): JPEG rounds


def test_a_jpeg_stays_as_it_is(tmp_path: Path):
    content = encoded("JPEG", "red")
    assert write_file(io.BytesIO(content), tmp_path / "a.jpg", as_jpeg=True) is None
    assert (tmp_path / "a.jpg").read_bytes() == content


def test_a_damaged_picture_is_told_and_the_others_are_unpacked(tmp_path: Path):
    contents = {"a.jpg": b"<html>", "b.jpg": encoded("PNG", "red")[:50], "c.jpg": encoded("PNG", "red")}
    damaged = unpack_all(write_archive(tmp_path / "a.zip", contents), tmp_path / "out", as_jpeg=True)
    assert [sentence.split(" is ")[0] for sentence in damaged] == [
        str(tmp_path / "out" / "a.jpg"),
        str(tmp_path / "out" / "b.jpg"),
    ]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["c.jpg"]
