"""Unpacking of image archives: it may be killed and repeated, and writes nowhere but where it is told."""

from __future__ import annotations

import contextlib
import lzma
import shutil
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from tqdm import tqdm

from llava.errors import UserError
from llava.image_io import load_image_bytes

_SUFFIXES: Final = (".zip", ".tar", ".tar.gz", ".tgz")
_JPEG_START: Final = b"\xff\xd8\xff"
_JPEG_QUALITY: Final = 95
_BATCH: Final = 64  # files that a thread takes at a time, and finishes when interrupted

# What zipfile and tarfile raise on damaged, encrypted and exotic archives.
_DAMAGE: Final = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, RuntimeError, ValueError),
)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Attributes:
        name: Its path there.
        size: In bytes, unpacked.
        info: What its reader needs to open it.
        safe: Whether it is a true file, no link, whose path stays in the folder that it is unpacked to.
    """

    name: str
    size: int
    info: Any = None
    safe: bool = True


def is_archive(name: str) -> bool:
    """Whether a file of this name can be unpacked here."""
    return name.lower().endswith(_SUFFIXES)


def list_members(path: Path) -> list[Member]:
    """List the files in an archive; for a compressed tar file this takes about as long as unpacking it.

    Raises:
        UserError: If it is damaged or cannot be read.
    """
    with _opened(path) as archive:
        if isinstance(archive, zipfile.ZipFile):
            files = [info for info in archive.infolist() if not info.is_dir()]
            return [
                Member(info.filename, info.file_size, info, _stays(info.filename) and not _is_link(info))
                for info in files
            ]
        entries = [info for info in archive.getmembers() if not info.isdir()]
        return [Member(info.name, info.size, info, _stays(info.name) and info.isfile()) for info in entries]


def unpack(
    path: Path, targets: Mapping[Path, Member], label: str, *, as_jpeg: bool = False, workers: int = 1
) -> list[str]:
    """Write files of an archive where they shall be.

    Args:
        path: The archive.
        targets: Its files by their final paths.
        label: What the progress bar calls it.
        as_jpeg: Whether images in other formats are to become JPEGs.
        workers: Threads, for a zip file; a tar file can only be read from one end to the other.

    Returns:
        A sentence for every image that was not written because it is damaged.

    Raises:
        UserError: If the archive is damaged, or a file cannot be written.
    """
    reading = threading.Lock()
    with _opened(path) as archive:

        def write(target: Path) -> str | None:
            with _reading(archive, targets[target], reading) as stream:
                return write_file(stream, target, as_jpeg=as_jpeg)

        threads = workers if isinstance(archive, zipfile.ZipFile) else 1
        return in_parallel(write, list(targets), threads, label)


def write_file(stream: IO[bytes], target: Path, *, as_jpeg: bool = False) -> str | None:
    """Write a file under a temporary name beside ``target``, and rename it when it is complete.

    Args:
        stream: What to write.
        target: The final path; its folder is made.
        as_jpeg: Whether an image in another format is to become a JPEG, an animation its first frame.

    Returns:
        Nothing, or a sentence if an image was not written because it is damaged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.part")
    try:
        with unfinished.open("wb") as file:
            shutil.copyfileobj(stream, file)
        if as_jpeg and not is_jpeg(unfinished):
            image = load_image_bytes(unfinished.read_bytes(), name=str(target))
            image.save(unfinished, "JPEG", quality=_JPEG_QUALITY)
        unfinished.replace(target)
    except UserError as error:
        return str(error)
    finally:
        unfinished.unlink(missing_ok=True)
    return None


def is_jpeg(path: Path) -> bool:
    """Whether a file begins like a JPEG, whatever it is called."""
    with path.open("rb") as file:
        return file.read(len(_JPEG_START)) == _JPEG_START


def in_parallel(
    task: Callable[[Path], str | None], paths: Sequence[Path], workers: int, label: str
) -> list[str]:
    """Do something with every path in several threads, with a progress bar, and return what they said."""
    batches = [paths[first : first + _BATCH] for first in range(0, len(paths), _BATCH)]
    said: list[str | None] = []
    threads = ThreadPoolExecutor(workers)
    try:
        with tqdm(total=len(paths), desc=label, unit=" files", disable=None) as bar:
            for done in threads.map(lambda batch: list(map(task, batch)), batches):
                said += done
                bar.update(len(done))
    finally:
        threads.shutdown(cancel_futures=True)
    return [sentence for sentence in said if sentence is not None]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    """Open an archive; what goes wrong with it becomes one sentence."""
    try:
        is_zip = path.name.lower().endswith(".zip")
        with zipfile.ZipFile(path) if is_zip else tarfile.open(path) as archive:
            yield archive
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be unpacked: {error}") from error
    except _DAMAGE as error:
        raise UserError(f"{path} is not a complete archive ({error}); download it again") from error


@contextlib.contextmanager
def _reading(
    archive: zipfile.ZipFile | tarfile.TarFile, member: Member, lock: threading.Lock
) -> Iterator[IO[bytes]]:
    """Open a file of an archive; zipfile lets threads read at the same time, but not open and close."""
    with lock:
        stream = (
            archive.open(member.info)
            if isinstance(archive, zipfile.ZipFile)
            else archive.extractfile(member.info)
        )
    assert stream is not None, "only true files are unpacked"
    try:
        yield stream
    finally:
        with lock:
            stream.close()


def _stays(name: str) -> bool:
    """Whether a path stays in the folder that it is unpacked to."""
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts


def _is_link(info: zipfile.ZipInfo) -> bool:
    """Whether a zip file's entry is a symbolic link: its upper 16 bits are a Unix mode."""
    return stat.S_ISLNK(info.external_attr >> 16)
