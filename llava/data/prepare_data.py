"""From downloads to data that trains LLaVA-1.5: ``python -m llava.data.prepare_data --downloads FOLDER``.

Unpacks what was downloaded, looks whether all images of the data files are there, and says what to do next.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from llava.data.downloads.archives import is_archive, write_file
from llava.data.downloads.coverage import Coverage, cover, shortcomings, table, write_report
from llava.data.downloads.parts import STAGES, Stage
from llava.data.downloads.sources import Source, check_sources, find_sources, list_files
from llava.data.records import read_records
from llava.errors import MissingFileError, UserError
from llava.options import CommandParser, positive
from llava.utils import exit_on_user_error

DATA: Final = Path("playground/data")
BY_HAND: Final = "if it is one, unpack it yourself below"


def say(text: str) -> None:
    """Print above a progress bar, not through it; names of files may hold what no terminal can show."""
    tqdm.write(text.encode(errors="backslashreplace").decode())


def prepare(stages: Sequence[Stage], downloads: Path, data: Path, *, workers: int, dry: bool) -> list[str]:
    """Put what was downloaded where training looks for it.

    Args:
        stages: What is wanted.
        downloads: Folder of archives, unpacked folders and data files.
        data: The data folder.
        workers: Threads.
        dry: Whether to say only what would be done.

    Returns:
        A sentence for every image that was left out because it is damaged.

    Raises:
        UserError: If an archive is damaged, unsafe or unclear, or something cannot be read or written.
    """
    files = list_files(downloads, data)
    sources = find_sources(files, data)
    known = {str(source.path) for source in sources}
    for archive in files:
        if is_archive(archive) and archive not in known:
            say(f"{archive}: none of the parts by the names in it, left alone; {BY_HAND} {data}")
    wanted = [source for source in sources if tell(source, stages)]
    check_sources(wanted)
    for stage in stages:
        copy_records(stage, files, data, dry=dry)
    return [] if dry else [sentence for source in wanted for sentence in source.put_in_place(workers)]


def tell(source: Source, stages: Sequence[Stage]) -> bool:
    """Say what an archive or folder is taken for, and return whether it is wanted."""
    wanted = any(source.part in stage.parts for stage in stages)
    if not wanted:
        fate = "not of this stage, left alone"
    elif source.is_linked:
        fate = "to be linked" if source.waiting else "left alone, since something is there"
    else:
        fate = f"to be written: {len(source.waiting):,}"
    say(f"{source.path} -> {source.place}: {source.part.name}, images: {len(source.images):,}, {fate}")
    return wanted


def copy_records(stage: Stage, files: Sequence[str], data: Path, *, dry: bool) -> None:
    """Copy the data file of a stage, if it is among the downloads.

    Raises:
        UserError: If there are two, or it cannot be copied.
    """
    target = data / stage.records
    found = [Path(file) for file in files if file.endswith(f"/{target.name}")]
    found = [file for file in found if os.path.realpath(file) != os.path.realpath(target)]
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]} are the same data file; take one of the two away")
    for file in found:
        try:
            if target.is_file() and target.stat().st_size == file.stat().st_size:
                continue
            say(f"{file} -> {target}: data file, to be copied")
            if not dry:
                with file.open("rb") as stream:
                    write_file(stream, target)
        except OSError as error:
            raise UserError(f"{file} cannot be copied to {target}: {error}") from error


def check(stage: Stage, data: Path) -> list[Coverage]:
    """Return what is there of a stage's data file and, if it is, of the images that its records name."""
    path = data / stage.records
    row = Coverage(path.name, stage.source, needed=1)
    if not path.is_file():
        row.missing = [str(path)]
        return [row]
    records = read_records(path)
    row.records = len(records)
    return [row, *cover(stage, records, data / stage.images)]


def next_commands(stage: Stage, data: Path) -> str:
    """Return the commands that check and train."""
    records, images = shlex.quote(str(data / stage.records)), shlex.quote(str(data / stage.images))
    check_data = "python -m llava.data.check_data"
    places = "" if data == DATA else f"DATA={records} IMAGES={images} "
    recipes = "   # or: ".join(f"{places}bash {recipe}" for recipe in stage.recipes)
    return (
        f"  {check_data} --data_path {records} --image_folder {images} --version {stage.version}\n  {recipes}"
    )


def parse(arguments: Sequence[str] | None) -> Any:
    """Read the command line.

    Raises:
        UserError: If it is wrong.
    """
    parser = CommandParser(prog="python -m llava.data.prepare_data", description=main.__doc__)
    parser.add_argument(
        "--downloads", type=Path, metavar="FOLDER", help="archives, unpacked folders and data files"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", default=DATA, help=f"default: {DATA}")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all", help="default: all")
    parser.add_argument(
        "--workers", type=positive, metavar="N", default=8, help="threads that write files (default: 8)"
    )
    parser.add_argument("--check", action="store_true", help="write nothing, say only what is there")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write all that is missing to a JSON file"
    )
    options = parser.parse_args(arguments)
    if options.downloads is None and not options.check:
        parser.error("--downloads is needed, or --check to say only what is there")
    if options.downloads is not None and not options.downloads.is_dir():
        raise MissingFileError(f"there is no folder {str(options.downloads)!r}; --downloads names one")
    return options


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int:
    """Put downloaded data where training looks for it, and say what is missing."""
    options = parse(arguments)
    stages = list(STAGES.values()) if options.stage == "all" else [STAGES[options.stage]]
    damaged: list[str] = []
    if options.downloads is not None:
        damaged = prepare(stages, options.downloads, options.data, workers=options.workers, dry=options.check)
    rows = [row for stage in stages for row in check(stage, options.data)]
    if options.report is not None:
        write_report(options.report, rows, damaged)
    say("\n" + table(rows))
    if damaged:
        say(f"\nDamaged images, left out: {len(damaged):,}; the first: {damaged[0]}")
    if any(row.missing for row in rows):
        say("\n" + shortcomings(rows))
        return 1
    say("\nEverything is there. Next:\n" + "\n".join(next_commands(stage, options.data) for stage in stages))
    return 0


if __name__ == "__main__":
    sys.exit(main())
