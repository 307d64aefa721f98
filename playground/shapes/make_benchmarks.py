"""Miniatures of all benchmarks from the synthetic shapes dataset, in the layouts of the real ones.

``python -m playground.shapes.make_benchmarks --output FOLDER`` makes what the whole evaluation can be run on,
with the bundled model and without a download. Scores on them are not those of the real benchmarks.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import UserError
from llava.eval.files import read_json, require_keys, write_json, write_text, writing
from llava.options import CommandParser
from llava.utils import exit_on_user_error
from playground.shapes.miniatures.base import Files, clear_scenes
from playground.shapes.miniatures.letters import mmbench, mmbench_cn, qbench, scienceqa, seed_bench
from playground.shapes.miniatures.open import llava_bench, mm_vet
from playground.shapes.miniatures.short import gqa, textvqa, vizwiz, vqav2
from playground.shapes.miniatures.yes_no import mme, pope
from playground.shapes.world import Scene

MADE_BY = "python -m playground.shapes.make_benchmarks"
# To be raised whenever a file changes.
VERSION = 1
STAMP = "MINIATURE.json"
# The name that `write_json` gives to a stamp it has not finished.
UNFINISHED = f"{STAMP}.unfinished"


@dataclass(frozen=True, slots=True)
class Miniature:
    """One benchmark.

    Attributes:
        folder: As LLaVA calls it.
        start: First held-out seed, counted from the first of all miniatures; far enough from the next one's.
        files: Makes its files of scenes.
    """

    folder: str
    start: int
    files: Callable[[Iterator[Scene]], Files]


MINIATURES = (
    Miniature("gqa", 0, gqa),
    Miniature("mmbench", 10_000, mmbench),
    # The same questions in Chinese, as in the real ones.
    Miniature("mmbench_cn", 10_000, mmbench_cn),
    Miniature("MME", 20_000, mme),
    Miniature("scienceqa", 30_000, scienceqa),
    Miniature("textvqa", 40_000, textvqa),
    Miniature("seed_bench", 50_000, seed_bench),
    Miniature("mm-vet", 60_000, mm_vet),
    Miniature("pope", 70_000, pope),
    Miniature("vqav2", 80_000, vqav2),
    Miniature("vizwiz", 90_000, vizwiz),
    Miniature("llava-bench-in-the-wild", 100_000, llava_bench),
    Miniature("qbench", 110_000, qbench),
)


def make(folder: Path) -> None:
    """Write the miniatures, unless they are there.

    Args:
        folder: Receives a folder of each benchmark, and last a stamp. Answers that were written beside the
            miniatures stay.

    Raises:
        UserError: If the folder holds something else, or cannot be written.
    """
    if _is_complete(folder):
        return
    files = contents()
    write_text(folder / UNFINISHED, f"made by {MADE_BY}\n")
    for name, data in files.items():
        with writing(folder / name) as unfinished:
            unfinished.write_bytes(data)
    stamp = {
        "about": "miniatures of benchmarks from the synthetic shapes dataset; no scores of the real ones",
        "made_by": MADE_BY,
        "version": VERSION,
        "digest": digest(files),
        "files": sorted(files),
    }
    write_json(folder / STAMP, stamp, indent=1)


def contents() -> Files:
    """Return all files by their names below the folder."""
    return {
        f"{miniature.folder}/{name}": data
        for miniature in MINIATURES
        for name, data in miniature.files(clear_scenes(miniature.start)).items()
    }


def digest(files: Mapping[str, bytes]) -> str:
    """Return a SHA-256 of the names and what is in the files."""
    total = hashlib.sha256()
    for name, data in sorted(files.items()):
        total.update(f"{name}\n{hashlib.sha256(data).hexdigest()}\n".encode())
    return total.hexdigest()


def _is_complete(folder: Path) -> bool:
    """Tell whether the folder holds the miniatures, undamaged.

    Raises:
        UserError: If it holds something else.
    """
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise UserError(f"{folder} cannot be read as a folder: {error.strerror}") from error
    if STAMP not in names:
        if names and UNFINISHED not in names:
            raise UserError(f"{folder} holds files, but no miniatures of {MADE_BY}; name a new folder")
        return False
    stamp = _read_stamp(folder / STAMP)
    try:
        return digest({name: (folder / name).read_bytes() for name in stamp["files"]}) == stamp["digest"]
    except (OSError, TypeError, ValueError):  # files that are missing, or a list that is none
        return False


def _read_stamp(path: Path) -> dict[str, Any]:
    stamp = require_keys(read_json(path), ("made_by", "version", "digest", "files"), str(path))
    if stamp["made_by"] != MADE_BY:
        raise UserError(f"{path} was made by {stamp['made_by']!r}, not by {MADE_BY}; name a new folder")
    if stamp["version"] != VERSION:
        raise UserError(
            f"{path.parent} holds miniatures of version {stamp['version']!r}, and this command makes "
            f"version {VERSION}; delete it or name a new folder"
        )
    return stamp


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Make miniatures of all benchmarks, in the layouts of the real ones."""
    parser = CommandParser(prog=MADE_BY, description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for a folder of each benchmark")
    folder = parser.parse_args(argv).output
    make(folder)
    print(f"miniatures of {len(MINIATURES)} benchmarks in {folder}")


if __name__ == "__main__":
    sys.exit(main())
