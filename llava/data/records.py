"""Training records: read and checked whole before a model is loaded; images are only looked for."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, SeparatorStyle
from llava.errors import MissingFileError, UserError
from llava.train.preprocess import ROLES, Turn, alternating_turns, render
from llava.utils import HALF_PAIR, check_characters, process_rank

logger = logging.getLogger(__name__)

CHECK_COMMAND = "python -m llava.data.check_data"

Record = dict[str, Any]
"""``conversations`` (a list of turns), and optionally ``id`` and ``image`` (below the image folder)."""


class Fault(Enum):
    """What is wrong with a record; only faults of images can be skipped."""

    RECORD = "wrong record"
    MISSING = "missing image"
    BROKEN = "broken image"


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that cannot be trained on.

    Attributes:
        index: Its place in the data file.
        fault: What kind of problem it is.
        sentence: Which record is meant, and what is wrong with it.
    """

    index: int
    fault: Fault
    sentence: str


def read_records(path: str | Path) -> list[Record]:
    """Read a data file.

    Raises:
        MissingFileError: If there is none.
        UserError: If it is not a JSON list with at least one record.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"no data file {str(path)!r}; --data_path is a JSON list of records")
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); expected one JSON list of records") from error
    if not isinstance(records, list) or not records:
        raise UserError(f"{path} holds {_kind(records)}; expected one JSON list of records")
    return records


def find_problems(
    records: Sequence[Any], image_folder: str | Path | None, template: Conversation
) -> Iterator[Problem]:
    """Find every record that cannot become a sample, as far as that shows without opening an image.

    Args:
        records: Of one data file.
        image_folder: Where their images lie.
        template: How they will be rendered.
    """
    # One listing per folder: asking for every file by itself takes minutes on network storage.
    listed = functools.cache(_listable_files_in)
    for index, record in enumerate(records):
        try:
            with naming(record, index):
                _check_turns(record, template)
                if "image" in record:
                    _check_file(image_path(record, image_folder), listed)
        except MissingFileError as error:
            yield Problem(index, Fault.MISSING, str(error))
        except UserError as error:
            yield Problem(index, Fault.RECORD, str(error))


def check_records(
    records: Sequence[Any],
    image_folder: str | Path | None,
    template: Conversation,
    on_bad_image: str = "error",
) -> None:
    """Make sure that every record can become a sample; images are only opened in training.

    Warns of images that no turn shows, of turns that show one where there is none, and of records without a
    question.

    Args:
        records: Of one data file.
        image_folder: Where their images lie.
        template: How they will be rendered.
        on_bad_image: ``skip`` makes missing images a warning, unless all of them are missing.

    Raises:
        UserError: If one cannot; the message names the first and counts the others.
        MissingFileError: If the first one's image is missing.
    """
    problems = list(find_problems(records, image_folder, template))
    fatal = fatal_problems(problems, records, on_bad_image)
    if fatal:
        error = MissingFileError if fatal[0].fault is Fault.MISSING else UserError
        others = f" (and {len(fatal) - 1:,} more; {CHECK_COMMAND} lists all bad records)" if fatal[1:] else ""
        raise error(f"{why_not_skipped(fatal, on_bad_image)}{fatal[0].sentence}{others}")
    if process_rank() != 0:
        return
    if problems:
        logger.warning(
            "records left out because their images are missing: %d; the first: %s",
            len(problems),
            problems[0].sentence,
        )
    left_out = {problem.index for problem in problems}
    odd: dict[str, list[str]] = defaultdict(list)
    for index, record in enumerate(records):
        if index not in left_out and (remark := oddity(record)):
            odd[remark].append(name_record(record, index))
    for remark, names in odd.items():
        logger.warning("%s: %d of %d records; the first: %s", remark, len(names), len(records), names[0])


def oddity(record: Record) -> str | None:
    """Say what is odd about a record whose turns are right, if anything is.

    It is trained on nevertheless, as LLaVA does.
    """
    if not alternating_turns(record["conversations"]):
        return f"No turn of {ROLES[0]!r}, so nothing to learn"
    is_shown = any(DEFAULT_IMAGE_TOKEN in turn["value"] for turn in record["conversations"])
    if "image" in record and not is_shown:
        return f"Image shown by no turn (no {DEFAULT_IMAGE_TOKEN}), so never seen"
    if "image" not in record and is_shown:
        return f"{DEFAULT_IMAGE_TOKEN} without an image, read as text"
    return None


def fatal_problems(problems: Sequence[Problem], records: Sequence[Any], on_bad_image: str) -> list[Problem]:
    """Return the problems that stop a training run.

    Args:
        problems: Of these records.
        records: Of one data file.
        on_bad_image: ``skip`` lets a run continue without the images that are bad, as long as one is good.
    """
    wrong = [problem for problem in problems if problem.fault is Fault.RECORD]
    images = sum(isinstance(record, dict) and "image" in record for record in records)
    can_skip = on_bad_image == "skip" and len(problems) - len(wrong) < images
    return wrong if can_skip else list(problems)


def why_not_skipped(fatal: Sequence[Problem], on_bad_image: str) -> str:
    """Begin a sentence about fatal problems: bad images are among them although they may be skipped."""
    images = any(problem.fault is not Fault.RECORD for problem in fatal)
    return "no image is left to train on: " if images and on_bad_image == "skip" else ""


def image_path(record: Record, image_folder: str | Path | None) -> Path:
    """Return where a record's image lies.

    Raises:
        UserError: If there is no image folder, or the path leads out of it.
    """
    name = record["image"]
    if not isinstance(name, str) or not name or HALF_PAIR.search(name):
        raise UserError(f"'image' is {name!r}; expected the path of one image below the image folder")
    if image_folder is None:
        raise UserError(f"it has an image ({name!r}), so --image_folder is needed")
    # Only the words are checked: a folder may well consist of links to where the images really are.
    words = PurePath(os.path.normpath(name))
    if words.is_absolute():
        folders = (find(image_folder) for find in (os.path.abspath, os.path.realpath))
        leads_out = not any(map(words.is_relative_to, folders))
    else:
        leads_out = words.parts[:1] == (os.pardir,)
    if leads_out:
        raise UserError(f"the image path {name!r} leads out of the image folder {str(image_folder)!r}")
    return Path(image_folder) / name


def name_record(record: Any, index: int) -> str:
    """Say which record is meant, by its place and its id."""
    own = record.get("id") if isinstance(record, dict) else None
    return f"record {index}" if own is None else f"record {index} (id {own!r:.80})"


@contextmanager
def naming(record: Any, index: int) -> Iterator[None]:
    """Let a mistake say in which record it is.

    Raises:
        UserError: Of the same type as the one that is raised inside.
    """
    try:
        yield
    except UserError as error:
        raise type(error)(f"{name_record(record, index)}: {error}") from error


def files_in(folder: str | Path) -> frozenset[str] | None:
    """List the files of a folder; ``None`` if there is no such folder.

    Raises:
        OSError: If it may not be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return None


def _listable_files_in(folder: str) -> frozenset[str] | None:
    """List the files of a folder, of one that may not be listed nothing."""
    try:
        return files_in(folder)
    except OSError:
        return frozenset()


def has_images(records: Sequence[Any]) -> bool:
    """Tell whether any record of a data file, right or wrong, has an image."""
    return any(isinstance(record, dict) and "image" in record for record in records)


def check_image_folder(image_folder: str | None) -> None:
    """Make sure that an image folder that is named exists.

    Raises:
        MissingFileError: If it does not.
    """
    if image_folder is not None and not Path(image_folder).is_dir():
        raise MissingFileError(f"no image folder {image_folder!r} (--image_folder)")


def _check_file(path: Path, listed: Callable[[str], frozenset[str] | None]) -> None:
    """Make sure that an image file is there."""
    folder, name = os.path.split(path)
    files = listed(folder)
    # Asked for by itself where the listing lacks it: some file systems match names without their case.
    if files is None or (name not in files and not _is_file(path)):
        raise MissingFileError(f"there is no image file {str(path)!r}")


def _is_file(path: Path) -> bool:
    """Tell whether a file is there; one that cannot be asked for (a name too long, no permission) is not."""
    try:
        return path.is_file()
    except OSError:
        return False


def _check_turns(record: Any, template: Conversation) -> None:
    """Check the conversation of one record."""
    turns = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(turns, list) or not turns:
        raise UserError("it has no 'conversations', a list of turns")
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or "from" not in turn:
            raise UserError(
                f"a turn is {turn!r:.80}; expected 'from' ({' or '.join(ROLES)}) and 'value', a text"
            )
        check_characters(turn["value"], "a turn")
    spoken = alternating_turns(turns)
    if "image" in record:
        _check_shown(turns[0], spoken)
    elif template.sep_style is SeparatorStyle.PLAIN:
        raise UserError("it has no 'image'")
    # Templates ask for something of the first turns only, and of how many there are if they want just two.
    if not render(spoken[:3], template):
        raise UserError(f"it has no turn of {ROLES[0]!r}")


def _check_shown(first: Turn, turns: Sequence[Turn]) -> None:
    """Make sure that a record's image is not shown twice, nor by a turn alone that is left out.

    Args:
        first: The first turn of the record.
        turns: Those that are trained on.
    """
    shown = sum(DEFAULT_IMAGE_TOKEN in turn["value"] for turn in turns)
    if shown > 1:
        raise UserError(f"{DEFAULT_IMAGE_TOKEN} stands in {shown} turns, but there is one image")
    if not shown and DEFAULT_IMAGE_TOKEN in first["value"]:
        raise UserError(
            f"{DEFAULT_IMAGE_TOKEN} stands in a first turn of {ROLES[1]!r} alone, which is left out; "
            f"expected in a turn of {ROLES[0]!r}"
        )


def _kind(value: Any) -> str:
    """Name what JSON holds instead of a list of records."""
    return "an empty list" if value == [] else f"a JSON {type(value).__name__}"
