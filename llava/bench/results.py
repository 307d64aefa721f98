"""Files of results: named so that none is overwritten, read back, and put into pages of the documentation."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

from llava.errors import UserError
from llava.eval.files import read_text, write_text

BEGIN, END = "<!-- generated from docs/benchmarks -->", "<!-- end -->"


def free_path(folder: Path, name: str) -> Path:
    """Return a file for results that overwrites none of the same day."""
    numbered = (folder / f"{name}{'' if number == 1 else f'-{number}'}.json" for number in count(1))
    return next(path for path in numbered if not path.exists())


def write_results(path: Path, document: str, tables: str) -> None:
    """Write a JSON document, and its tables beside it; until they are complete, those there stay.

    Raises:
        UserError: If they cannot be written.
    """
    write_text(path, document)
    write_text(path.with_suffix(".md"), tables)


def read_json(path: Path, schema: object) -> dict[str, Any]:
    """Read a document of a schema, which is taken off.

    Raises:
        UserError: If it is none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as results: {error}") from error
    found = document.pop("schema", None) if isinstance(document, dict) else None
    if found != schema:
        raise UserError(f"{path} has results of schema {found!r}; accepted: {schema}")
    return document


def put_between_marks(page: str, text: str) -> str:
    """Return a page with a text between its marks.

    Raises:
        UserError: If it has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"the page has no {BEGIN} and {END} for the tables")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def show(text: str, page: Path | None) -> None:
    """Print a text, or put it between the marks of a page.

    Raises:
        UserError: If the page has no marks or cannot be written.
    """
    if page is None:
        print(text, end="")
        return
    write_text(page, put_between_marks(read_text(page), text))
