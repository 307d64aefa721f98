"""Training records: read and checked whole before a model is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, SeparatorStyle
from llava.errors import MissingFileError, UserError
from llava.train.preprocess import ROLES, alternating_turns, render

Record = dict[str, Any]
"""``conversations`` (a list of turns), and optionally ``id`` and ``image`` (relative to the image folder)."""


def read_records(path: str | Path) -> list[Record]:
    """Read a data file.

    Raises:
        MissingFileError: If there is none.
        UserError: If it is not a JSON list with at least one record.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"no data file {str(path)!r}; --data_path is a JSON list of records")
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); expected one JSON list of records") from error
    if not isinstance(records, list) or not records:
        raise UserError(f"{path} holds {_kind(records)}; expected one JSON list of records")
    return records


def check_records(records: Sequence[Any], image_folder: str | Path | None, template: Conversation) -> None:
    """Make sure that every record can become a sample; images are only opened in training.

    Args:
        records: Of one data file.
        image_folder: Where their images lie.
        template: How they will be rendered.

    Raises:
        UserError: If one cannot; the message names it.
    """
    for index, record in enumerate(records):
        try:
            _check_turns(record, template)
            if "image" in record:
                image_path(record, image_folder)
        except UserError as error:
            raise type(error)(f"{name_record(record, index)}: {error}") from error


def image_path(record: Record, image_folder: str | Path | None) -> Path:
    """Return where a record's image lies.

    Raises:
        UserError: If there is no image folder, or the path leads out of it.
    """
    name = record["image"]
    if not isinstance(name, str) or not name:
        raise UserError(f"'image' is {name!r}; expected the path of one image below the image folder")
    if image_folder is None:
        raise UserError(f"it has an image ({name!r}), so --image_folder is needed")
    # Only the words are checked: a folder may well consist of links to where the pictures really are.
    if PurePath(name).is_absolute() or Path(os.path.normpath(name)).parts[0] == os.pardir:
        raise UserError(f"the image path {name!r} leads out of the image folder {str(image_folder)!r}")
    return Path(image_folder) / name


def name_record(record: Any, index: int) -> str:
    """Say which record is meant, by its place and its id."""
    own = record.get("id") if isinstance(record, dict) else None
    return f"record {index}" if own is None else f"record {index} (id {own!r})"


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
    turns = alternating_turns(turns)
    if not turns:
        raise UserError("it has no turn of 'human'")
    shown = sum(DEFAULT_IMAGE_TOKEN in turn["value"] for turn in turns)
    if "image" in record and shown > 1:
        raise UserError(f"{DEFAULT_IMAGE_TOKEN} stands in {shown} turns, but there is one image")
    if "image" not in record and template.sep_style is SeparatorStyle.PLAIN:
        raise UserError("it has no 'image'")
    render(turns, template)


def _kind(value: Any) -> str:
    """Name what JSON holds instead of a list of records."""
    return "an empty list" if value == [] else f"a JSON {type(value).__name__}"
