"""What LLaVA-1.5's two stages are trained on, and how to tell from their paths which part images are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final


@dataclass(frozen=True, slots=True)
class Part:
    """The images of one provider.

    Attributes:
        name: What people call them.
        folder: Their place below the data folder.
        images: Regular expression of their names as the provider gives them, beginning with the folder that
            tells them from the other parts'; its group ``name`` is what goes below ``folder``.
        source: What to download, and where.
        as_jpeg: Whether the records call them all ``.jpg`` while the provider has other formats too.
    """

    name: str
    folder: str
    images: str
    source: str
    as_jpeg: bool = False

    def called(self, name: str) -> str:
        """Return what the records call an image that the provider calls ``name``."""
        return str(PurePosixPath(name).with_suffix(".jpg")) if self.as_jpeg else name


@dataclass(frozen=True, slots=True)
class Stage:
    """One of the two stages of training.

    Attributes:
        records: Its data file, below the data folder.
        source: What to download, and where.
        images: The image folder of its records, below the data folder.
        version: The template that its recipes train with.
        recipes: Scripts that train on it; one of them is enough.
        parts: The images that its records name.
    """

    records: str
    source: str
    images: str
    version: str
    recipes: tuple[str, ...]
    parts: tuple[Part, ...]

    def part_of(self, folder: str) -> Part | None:
        """Return the part that a folder, as the records name it, belongs to; ``None`` for one of your own."""
        place = PurePosixPath(self.images, folder)
        return next((part for part in self.parts if place.is_relative_to(part.folder)), None)


STAGES: Final = {
    "pretrain": Stage(
        records="LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
        source="blip_laion_cc_sbu_558k.json of liuhaotian/LLaVA-Pretrain on Hugging Face",
        images="LLaVA-Pretrain/images",
        version="plain",
        recipes=("scripts/v1_5/pretrain.sh",),
        parts=(
            Part(
                name="LCS-558K",
                folder="LLaVA-Pretrain/images",
                images=r"(?P<name>\d{5}/\d{9}\.jpg)",
                source="images.zip of liuhaotian/LLaVA-Pretrain on Hugging Face",
            ),
        ),
    ),
    "finetune": Stage(
        records="llava_v1_5_mix665k.json",
        source="llava_v1_5_mix665k.json of liuhaotian/LLaVA-Instruct-150K on Hugging Face",
        images=".",
        version="v1",
        recipes=("scripts/v1_5/finetune.sh", "scripts/finetune_8gpu_TRIM.sh"),
        parts=(
            Part(
                name="COCO train2017",
                folder="coco/train2017",
                images=r"train2017/(?P<name>\d{12}\.jpg)",
                source="http://images.cocodataset.org/zips/train2017.zip",
            ),
            Part(
                name="GQA",
                folder="gqa/images",
                images=r"images/(?P<name>n?\d{1,7}\.jpg)",
                source="https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip",
            ),
            Part(
                name="OCR-VQA",
                folder="ocr_vqa/images",
                # ISBNs without their leading zeros: some look like GQA's, which therefore stands before.
                images=r"images/(?P<name>(\d{0,9}[\dX]|B[0-9A-Z]{9})\.\w+)",
                source="the folder images that the download script of https://ocr-vqa.github.io fills",
                as_jpeg=True,
            ),
            Part(
                name="TextVQA",
                folder="textvqa/train_images",
                images=r"train_images/(?P<name>[0-9a-f]{16}\.jpg)",
                source="https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
            ),
            Part(
                name="Visual Genome 1",
                folder="vg/VG_100K",
                images=r"VG_100K/(?P<name>\d+\.jpg)",
                source="https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip",
            ),
            Part(
                name="Visual Genome 2",
                folder="vg/VG_100K_2",
                images=r"VG_100K_2/(?P<name>\d+\.jpg)",
                source="https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip",
            ),
        ),
    ),
}

PARTS: Final = tuple(part for stage in STAGES.values() for part in stage.parts)
PICTURE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")

# A folder called like a part's place is that part, whatever the names in it.
_PATTERNS: Final = [
    *((part, re.compile(rf".*/{part.folder}/(?P<name>[^/]+)")) for part in PARTS),
    *((part, re.compile(rf".*/{part.images}")) for part in PARTS),
]

Found = dict[tuple[Part, str], dict[str, str]]
"""By part and by the folder that stands for its place: images' names below that place, and their paths."""


def recognize(paths: Iterable[str]) -> Found:
    """Sort images by the part that they belong to.

    A folder belongs to the first part whose names all of its images have: one name alone would not tell GQA
    from OCR-VQA. Images of no part and other files are left out.

    Args:
        paths: Absolute, of any files, with ``/``; a file in an archive lies below the archive's own folder.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, _, name = path.rpartition("/")
        if name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith("."):
            folders[folder].append(path)
    found: Found = defaultdict(dict)
    for images in folders.values():
        for part, pattern in _PATTERNS:
            if all(map(pattern.fullmatch, images)):
                for path in images:
                    name = pattern.sub(r"\g<name>", path)
                    found[part, path.removesuffix(name)][part.called(name)] = path
                break
    return found
