"""Which images of a data file are there, part by part; folders are listed, no image is looked at singly."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from llava.data.downloads.parts import Part, Stage
from llava.data.records import files_in, image_path, naming
from llava.errors import UserError

EXAMPLES: Final = 3
SKIPPING: Final = "Images that cannot be had any more are left out if training is given --on_bad_image skip."
OTHER_SOURCE: Final = "them where the data file is from"


@dataclass(slots=True)
class Coverage:
    """How much of a part is there.

    Attributes:
        name: Of the part.
        source: What to download, and where.
        records: How many records name one of its images.
        needed: How many different images they name.
        missing: Those that are not there, as the records call them.
    """

    name: str
    source: str
    records: int = 0
    needed: int = 0
    missing: list[str] = field(default_factory=list)


def cover(stage: Stage, records: Sequence[Any], image_folder: Path) -> list[Coverage]:
    """Look which of the records' images are there.

    Args:
        stage: Whose parts are looked at; images of no part are a row of their own.
        records: Of its data file.
        image_folder: Where their images lie.

    Raises:
        UserError: If a record's image is no path below the image folder, or a folder cannot be listed.
    """
    rows: dict[Part | None, Coverage] = {part: Coverage(part.name, part.source) for part in stage.parts}
    for folder, names in _names_by_folder(records, image_folder).items():
        missing = names.keys() - _list_files(image_folder / folder)
        row = rows.setdefault(stage.part_of(folder), Coverage("other images", OTHER_SOURCE))
        row.records += names.total()
        row.needed += len(names)
        row.missing += sorted(str(PurePosixPath(folder, name)) for name in missing)
    return list(rows.values())


def table(rows: Sequence[Coverage]) -> str:
    """Return what is there as a table of plain text."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'part':<{width}}   records    needed   present   missing"]
    for row in rows:
        numbers = (row.records, row.needed, row.needed - len(row.missing), len(row.missing))
        lines.append(f"{row.name:<{width}}" + "".join(f"{number:>10,}" for number in numbers))
    return "\n".join(lines)


def shortcomings(rows: Sequence[Coverage]) -> str:
    """Say what is missing and where to get it."""
    lines = []
    for row in rows:
        if row.missing:
            names = ", ".join(row.missing[:EXAMPLES]) + (", ..." if row.missing[EXAMPLES:] else "")
            lines += [f"{row.name} lacks {len(row.missing):,}: {names}", f"  get {row.source}"]
    lines.append("Then repeat this command.")
    if any(row.records and row.missing for row in rows):  # a missing data file has no records
        lines.append(SKIPPING)
    return "\n".join(lines)


def write_report(path: Path, rows: Sequence[Coverage], damaged: Sequence[str]) -> None:
    """Write everything that is missing as JSON.

    Raises:
        UserError: If it cannot be written.
    """
    report: dict[str, Any] = {"parts": [asdict(row) for row in rows], "damaged": list(damaged)}
    try:
        path.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"the report could not be written to {path}: {error.strerror}") from error


def _names_by_folder(records: Sequence[Any], image_folder: Path) -> dict[str, Counter[str]]:
    """Count how often each image is named, folder by folder."""
    folders: dict[str, Counter[str]] = {}
    for index, record in enumerate(records):
        if not isinstance(record, dict) or "image" not in record:
            continue
        folder, _, name = str(record["image"]).rpartition("/")
        if folder not in folders:
            # Once per folder: for every record this would take longer than all else.
            with naming(record, index):
                image_path(record, image_folder)
            folders[folder] = Counter()
        folders[folder][name] += 1
    return folders


def _list_files(folder: Path) -> frozenset[str]:
    """Return the names of the files in a folder, none if it is not there."""
    try:
        return files_in(folder) or frozenset()
    except ValueError:  # names that no folder can have
        return frozenset()
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from error
