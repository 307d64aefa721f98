"""Check training data without training: ``python -m llava.data.check_data --help``.

Exits with 0 if training would run, 1 if it would fail, and 2 if the command is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates
from llava.data.data_report import Findings, report
from llava.data.records import (
    Fault,
    Problem,
    Record,
    check_image_folder,
    find_problems,
    has_images,
    image_path,
    name_record,
    oddity,
    read_records,
)
from llava.data.text_lengths import Ruler, make_ruler
from llava.errors import MissingFileError, UserError
from llava.image_io import load_image
from llava.options import CommandParser, positive
from llava.train.arguments import ON_BAD_IMAGE, DataArguments
from llava.train.model_setup import template_of_version
from llava.train.preprocess import ROLES
from llava.utils import exit_on_user_error, printable, refuse_overwriting

CHUNK = 64  # what a worker process is given at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


def check_data(records: Sequence[Any], ruler: Ruler, workers: int, open_images: bool = True) -> Findings:
    """Find out all there is to know about records before they are trained on.

    Args:
        records: Of one data file.
        ruler: Measures their texts; its ``data_args`` say where their images lie.
        workers: Processes that open images and measure texts.
        open_images: Whether images are decoded, as only that finds damaged ones.
    """
    folder = ruler.data_args.image_folder
    problems = list(tqdm(find_problems(records, folder, ruler.template), "records", disable=None))
    if open_images:
        problems += find_broken_images(records, folder, {problem.index for problem in problems}, workers)
    wrong = {problem.index for problem in problems if problem.fault is Fault.RECORD}
    right = [index for index in range(len(records)) if index not in wrong]
    measures = map_in_parallel(ruler.measure, [records[index] for index in right], workers, "texts")
    return Findings(
        records=records,
        problems=sorted(problems, key=lambda problem: problem.index),
        remarks=find_remarks(records, right),
        measures=dict(zip(right, measures, strict=True)),
        ruler=ruler,
        opened=open_images,
    )


def find_broken_images(
    records: Sequence[Record], image_folder: str | None, known: set[int], workers: int
) -> Iterator[Problem]:
    """Open every image once, and yield a problem for every record that has a damaged one.

    Args:
        records: Of one data file.
        image_folder: Where their images lie.
        known: Places of records that have a problem already.
        workers: Processes that open images.
    """
    users: dict[Path, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        if index not in known and "image" in record:
            users[image_path(record, image_folder)].append(index)
    defects = map_in_parallel(image_defect, list(users), workers, "images")
    for indices, defect in zip(users.values(), defects, strict=True):
        for index in indices if defect else ():
            yield Problem(index, Fault.BROKEN, f"{name_record(records[index], index)}: {defect}")


def image_defect(path: Path) -> str | None:
    """Decode an image as training does, and say what is wrong with it, if anything."""
    try:
        load_image(path)
    except UserError as error:
        return str(error)
    return None


def find_remarks(records: Sequence[Record], right: Sequence[int]) -> dict[str, list[str]]:
    """Find what is odd but does not stop training.

    Args:
        records: Of one data file.
        right: Places of those whose turns are right.

    Returns:
        Per remark the names of the records that it is true of; only remarks that are true of some.
    """
    remarks: dict[str, list[str]] = defaultdict(list)
    ids: set[str] = set()
    for index in right:
        for remark in _remarks(records[index], ids):
            remarks[remark].append(name_record(records[index], index))
        ids.add(repr(records[index].get("id")))
    return dict(remarks)


def _remarks(record: Record, ids: set[str]) -> Iterator[str]:
    """Say what is odd about a record, given the ids of those before it."""
    speakers = {turn["from"] for turn in record["conversations"] if DEFAULT_IMAGE_TOKEN in turn["value"]}
    if remark := oddity(record):
        yield remark
    if "image" in record and ROLES[1] in speakers:
        yield f"{DEFAULT_IMAGE_TOKEN} inside an answer"
    if record.get("id") is not None and repr(record["id"]) in ids:
        yield "Same id as an earlier record"


class _Mapped(Dataset):
    """Results of a function, each computed when it is asked for."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.items[index])


def map_in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, title: str
) -> Iterator[Result]:
    """Apply a function to items in worker processes, as training makes its samples, behind a progress bar.

    Args:
        function: What to apply.
        items: What to apply it to.
        workers: Processes; 1, or a few items, are done in this one.
        title: Of the progress bar, which shows on a terminal only.

    Yields:
        The results in order.
    """
    processes = workers if workers > 1 and len(items) > CHUNK else 0
    loader = DataLoader(_Mapped(function, items), batch_size=CHUNK, num_workers=processes, collate_fn=list)
    with tqdm(total=len(items), desc=title, disable=None) as bar:
        for results in loader:
            yield from results
            bar.update(len(results))


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Check a data file as the command line says, and print what was found."""
    options = _parse(argv)
    template = conv_templates[template_of_version(options.version)]
    data_args = DataArguments(
        image_folder=options.image_folder, on_bad_image=options.on_bad_image, is_multimodal=True
    )
    refuse_overwriting("--report", options.report, options.data_path)
    _check_writable(options.report)
    ruler = make_ruler(
        template, options.model_max_length, data_args, options.model_name_or_path, options.vision_tower
    )
    try:
        records = read_records(options.data_path)
    except MissingFileError:
        raise
    except UserError as error:  # of the data, not of the command
        print(printable(f"training would fail: {error}"))
        return 1
    _check_image_folder(records, options.image_folder)
    findings = check_data(records, ruler, options.workers, open_images=not options.fast)
    if options.report is not None:
        options.report.write_text(json.dumps(findings.document(), indent=2) + "\n", encoding="utf-8")
    print(printable("\n".join(report(findings, options.all))))
    return 0 if findings.would_train else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; flags are spelled as training spells them."""
    parser = CommandParser(
        prog="python -m llava.data.check_data",
        description="Check training data without training: records, images and lengths. "
        "Exits with 0 if training would run and with 1 if it would fail.",
    )
    parser.add_argument("--data_path", required=True, help="JSON list of records in LLaVA's format")
    parser.add_argument("--image_folder", help="folder below which their images lie")
    parser.add_argument(
        "--version", default="v1", help="conversation template, as for training (default: v1)"
    )
    parser.add_argument(
        "--model_name_or_path", metavar="BASE", help="base model, to count tokens instead of words"
    )
    parser.add_argument(
        "--vision_tower",
        metavar="CLIP",
        help="CLIP, to count visual tokens and check questions (default: the base's)",
    )
    parser.add_argument(
        "--model_max_length",
        type=positive,
        default=2048,
        help="length at which samples are cut (default: 2048)",
    )
    parser.add_argument(
        "--on_bad_image", choices=ON_BAD_IMAGE, default="error", help="as for training (default: error)"
    )
    parser.add_argument(
        "--workers", type=positive, default=_cores(), help="processes (default: one per core)"
    )
    parser.add_argument(
        "--fast", action="store_true", help="look whether images are there, but do not open them"
    )
    parser.add_argument("--all", action="store_true", help="list all bad images, not only the first")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write everything that was found as JSON")
    return parser.parse_args(argv)


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_writable(path: Path | None) -> None:
    """Make sure that a report can be written, before hours are spent on it.

    Raises:
        UserError: If it cannot.
    """
    try:
        if path is not None:
            path.open("a").close()
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}") from error


def _check_image_folder(records: Sequence[Any], image_folder: str | None) -> None:
    """Make sure that there is an image folder where there are images.

    Raises:
        UserError: If none is given.
        MissingFileError: If it does not exist.
    """
    if not has_images(records):
        return
    if image_folder is None:
        raise UserError("the records have images, so --image_folder is needed")
    check_image_folder(image_folder)


if __name__ == "__main__":
    sys.exit(main())
