"""Finding the parts of the data among downloads, and putting them where training looks for them."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

from llava.data.downloads.archives import (
    Member,
    in_parallel,
    is_archive,
    is_jpeg,
    list_members,
    unpack,
    write_file,
)
from llava.data.downloads.parts import PARTS, Part, recognize
from llava.errors import UserError


@dataclass(frozen=True)
class Source:
    """An archive, or a folder that somebody unpacked, with images of a part.

    Attributes:
        path: Of the archive or folder.
        part: Whose images it holds.
        place: Where the part belongs.
        images: By their names below the place. Files in a folder count no bytes: they will be linked.
    """

    path: Path
    part: Part
    place: Path
    images: Mapping[str, Member]

    @property
    def is_linked(self) -> bool:
        """Whether the place becomes a link to the whole folder."""
        return self.path.is_dir() and not self.part.as_jpeg

    @cached_property
    def waiting(self) -> dict[Path, Member]:
        """Images that are still to be put in place, by their final paths."""
        if self.is_linked and self.place.exists():
            return {}
        paths = {self.place / name: image for name, image in self.images.items()}
        return {path: image for path, image in paths.items() if not self._is_there(path, image)}

    def put_in_place(self, workers: int) -> list[str]:
        """Unpack, convert or link what is waiting.

        Args:
            workers: Threads.

        Returns:
            A sentence for every image that was left out because it is damaged.

        Raises:
            UserError: If the archive is damaged, or something cannot be written.
        """
        try:
            if self.is_linked and self.waiting:
                _link(self.path, self.place)
            elif self.path.is_dir():
                return in_parallel(self._link_or_convert, list(self.waiting), workers, self.part.name)
            else:
                as_jpeg = self.part.as_jpeg
                return unpack(self.path, self.waiting, self.part.name, as_jpeg=as_jpeg, workers=workers)
        except OSError as error:
            raise UserError(f"{self.path} cannot be put into {self.place}: {error}") from error
        return []

    def _is_there(self, path: Path, image: Member) -> bool:
        """Whether an image is in place; one that was converted has a size of its own."""
        return path.exists() and (self.part.as_jpeg or path.stat().st_size == image.size)

    def _link_or_convert(self, path: Path) -> str | None:
        """Put one file of a folder in place."""
        original = Path(self.waiting[path].name)
        if not is_jpeg(original):
            with original.open("rb") as file:
                return write_file(file, path, as_jpeg=True)
        _link(original, path)
        return None


def list_files(downloads: Path, data: Path) -> list[str]:
    """List the files below a folder, links followed, without hidden folders and what is already in place.

    Args:
        downloads: The folder.
        data: The data folder, which may lie in it or be it.

    Returns:
        Absolute paths, in order.
    """
    seen = {os.path.realpath(data / part.folder) for part in PARTS}
    files = []
    for folder, below, names in os.walk(downloads.absolute(), followlinks=True):
        files += [f"{folder}/{name}" for name in sorted(names)]
        real = {name: os.path.realpath(f"{folder}/{name}") for name in below if not name.startswith(".")}
        below[:] = [name for name in sorted(real) if real[name] not in seen]
        seen.update(real.values())
    return files


def find_sources(files: Sequence[str], data: Path) -> list[Source]:
    """Find the folders and archives that hold images of a part.

    Args:
        files: Absolute paths of all that was downloaded.
        data: The data folder.

    Raises:
        UserError: If an archive is damaged, or would write elsewhere.
    """
    sources = _sources(None, {path: Member(path, 0) for path in files}, data)
    for archive in map(Path, filter(is_archive, files)):
        members = {f"{archive.parent}/{member.name}": member for member in list_members(archive)}
        found = _sources(archive, members, data)
        unsafe = next((member.name for member in members.values() if not member.safe), None)
        if found and unsafe is not None:
            raise UserError(f"{archive} is not unpacked: {unsafe!r} is a link or leads out of the archive")
        sources += found
    return sources


def check_sources(sources: Sequence[Source]) -> None:
    """Make sure that it is clear what is to be put in place, and that it fits onto its disk.

    Raises:
        UserError: If it is not, or does not.
    """
    for one, other in combinations([source for source in sources if source.waiting], 2):
        if one.part == other.part and (both := one.images.keys() & other.images.keys()):
            raise UserError(
                f"{one.path} and {other.path} both hold images of {one.part.name}, such as {min(both)}; "
                "take one of the two away"
            )
    needed: Counter[int] = Counter()
    for source in sources:
        parents = (source.place, *source.place.absolute().parents)
        folder = next(parent for parent in parents if parent.exists())
        disk, free = folder.stat().st_dev, shutil.disk_usage(folder).free
        needed[disk] += sum(image.size for image in source.waiting.values())
        if needed[disk] > free:
            raise UserError(
                f"unpacking needs {needed[disk] / 1e9:.1f} GB or more on the disk of {folder}, where "
                f"{free / 1e9:.1f} GB are free"
            )


def _sources(archive: Path | None, members: Mapping[str, Member], data: Path) -> list[Source]:
    """Return what an archive holds, or without one the unpacked folders, given their files by path."""
    return [
        Source(
            path=archive or Path(folder),
            part=part,
            place=data / part.folder,
            images={name: members[path] for name, path in names.items()},
        )
        for (part, folder), names in recognize(members).items()
    ]


def _link(original: Path, path: Path) -> None:
    """Make ``path`` a link to ``original``, in place of a link that leads nowhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(original)
