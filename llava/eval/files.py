"""Files of benchmarks: read with errors that say where, written whole or not at all."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llava.errors import MissingFileError, UserError
from llava.folder_lock import lock_folder

JsonObject = dict[str, Any]

Kind = tuple[type, ...] | list[tuple[type, ...]]
"""The types that a value may have; in a list, those of every item of one."""

ID, TEXT, TRUTH, INTEGER, NUMBER = (str, int), (str,), (bool,), (int,), (int, float)
LIST, OBJECT = (list,), (dict,)
OPTIONAL = "?"  # at the end of a key that may be missing, or null
# What the keys of benchmarks hold, wherever they stand; others hold anything.
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("question_id", "image_id", "id", "question_type_id", "answer_id"), ID),
    **dict.fromkeys(("text", "image", "category", "prompt", "label", "caption", "question", "value"), TEXT),
    **dict.fromkeys(("img_path", "data_type", "role", "answer", "answer_type", "correct_ans", "type"), TEXT),
    **dict.fromkeys(("hint", "grade", "subject", "lecture", "solution"), TEXT),
    **dict.fromkeys(("types", "question_type"), OBJECT),
    **{key: [TEXT] for key in ("answers", "candidates", "choices", "capability")},
    **{key: [OBJECT] for key in ("questions", "annotations", "data", "conversations")},
    "tuple": [NUMBER],
}
_MAYBE_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_NAMES = {
    bool: "true or false",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    dict: "an object",
}


def read_json(path: Path) -> Any:
    """Read a JSON document.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it cannot be read or is not JSON.
    """
    text = read_text(path)
    try:
        return _parse(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not JSON: {error}") from error


def read_jsonl(path: Path, *keys: str, **kinds: Kind) -> list[JsonObject]:
    """Read a file with one JSON object a line; empty lines do not count.

    Args:
        path: The file.
        *keys: What every object must have; see `require_keys`.
        **kinds: What keys hold, where it is not the usual.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it cannot be read, or a line is not such an object; it is named by its number.
    """
    objects = []
    # Not `splitlines`: JSON texts may hold other line separators than "\n".
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            objects.append(_read_line(line, keys, f"{path}, line {number}", kinds))
    return objects


def require_keys(item: Any, keys: Sequence[str], where: str, **kinds: Kind) -> JsonObject:
    """Return an object of a file if it is one with these keys, and they hold what they should.

    Args:
        item: Maybe an object.
        keys: What it must have; one that ends in ``?`` may be missing or null.
        where: What error messages call it.
        **kinds: What keys hold, where it is not the usual.

    Raises:
        UserError: If it is not.
    """
    if not isinstance(item, dict):
        raise UserError(f"{where} is {item!r:.80}; expected a JSON object")
    if missing := [key for key in keys if key not in item and not key.endswith(OPTIONAL)]:
        has = f"{', '.join(map(repr, item))}"
        raise UserError(f"{where} lacks {', '.join(map(repr, missing))}; it has {has:.200}")
    for key in keys:
        name = key.removesuffix(OPTIONAL)
        kind, value = kinds.get(name, _KINDS.get(name)), item.get(name)
        is_absent = value is None and name != key
        if kind is not None and not is_absent and (complaint := _complain(value, kind)):
            raise UserError(f"{where}: {name!r} {complaint}")
    return item


def read_objects(path: Path, *keys: str) -> list[JsonObject]:
    """Read a JSON list of objects.

    Args:
        path: The file.
        *keys: What every object must have; see `require_keys`.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it cannot be read, or is no such list; an item is named by its number, from 0.
    """
    items = read_json(path)
    if not isinstance(items, list):
        raise UserError(f"{path} is {items!r:.80}; expected a JSON list")
    return [require_keys(item, keys, f"{path}, item {number}") for number, item in enumerate(items)]


def write_text(path: Path, text: str) -> Path:
    """Write a file so that it has its name only when it is complete, making its folder.

    Returns:
        The path.

    Raises:
        UserError: If it cannot be written.
    """
    with writing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, document: Any, indent: int | None = None) -> Path:
    """Write a JSON document as `write_text` does; the errors are its own."""
    return write_text(path, json.dumps(document, ensure_ascii=False, indent=indent) + "\n")


def write_jsonl(path: Path, objects: Iterable[JsonObject]) -> Path:
    """Write one JSON object a line as `write_text` does; the errors are its own."""
    return write_text(path, "".join(json_line(item) for item in objects))


def json_line(item: JsonObject) -> str:
    """Return a JSON object as one line, its end included."""
    return json.dumps(item, ensure_ascii=False) + "\n"


def write_score(path: Path, title: str, value: float) -> None:
    """Put a score at the end of LLaVA's text file of results.

    It takes the place of an earlier one of the same title, but of none in front of a line that is no score,
    such as the name of the next model. Several processes may write to one file.

    Raises:
        UserError: If it cannot be written.
    """
    with explaining_writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_folder(path.parent, "--results-file"), writing(path) as unfinished:
            lines = read_text(path).splitlines() if path.exists() else []
            own = next((i for i in range(len(lines), 0, -1) if "\t" not in lines[i - 1]), 0)
            kept = lines[:own] + [line for line in lines[own:] if line.split("\t")[0] != title]
            text = "".join(f"{line}\n" for line in [*kept, f"{title}\t{value:.2f}"])
            unfinished.write_text(text, encoding="utf-8")


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a name to write to, which becomes the file's when the block ends without an error.

    Raises:
        UserError: If the file cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    with explaining_writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            unfinished.replace(path)
        except BaseException:
            # Such as a full disk, which has use for the space.
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise


@contextmanager
def explaining_writes(path: Path) -> Iterator[None]:
    """Turn what the operating system says while a file is written into a sentence about the file.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def move_aside(*paths: Path) -> list[Path]:
    """Give files and folders names that are free, by the first number that is free for all of them.

    Returns:
        The new names of those that are there.

    Raises:
        UserError: If one cannot be renamed.
    """
    number = 1
    while any(_numbered(path, number).exists() for path in paths):
        number += 1
    moved = []
    for path in paths:
        if path.exists():
            with explaining_writes(path):
                moved.append(path.rename(_numbered(path, number)))
    return moved


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def is_there(path: Path) -> bool:
    """Tell whether a file or folder is there; one whose name no file can have is not."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def first_file(folder: Path, names: Sequence[str]) -> Path:
    """Return the first of several files that is there.

    Raises:
        MissingFileError: If none is.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise MissingFileError(f"there is no {' or '.join(names)} in {folder}")


def read_text(path: Path) -> str:
    """Read a file of text.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error


def has_error(line: JsonObject) -> bool:
    """Tell whether a record of LLaVA's says that its question failed."""
    metadata = line.get("metadata")
    return isinstance(metadata, dict) and "error" in metadata


def _parse(text: str) -> Any:
    """Parse JSON; halves of characters, which it may write and nothing can encode, are refused.

    Raises:
        ValueError: If it is not JSON, or holds one.
    """
    document = json.loads(text)
    if _MAYBE_HALF.search(text):
        json.dumps(document, ensure_ascii=False).encode()
    return document


def _complain(value: Any, kind: Kind) -> str | None:
    """Say what is wrong with a value; None if it is of the kind."""
    if not isinstance(kind, list):
        return None if _is_of(value, kind) else f"is {value!r:.80}; expected {_describe(kind)}"
    if not isinstance(value, list):
        return f"is {value!r:.80}; expected a list"
    wrong = (number for number, item in enumerate(value) if not _is_of(item, kind[0]))
    if (number := next(wrong, None)) is None:
        return None
    return f"has {value[number]!r:.80} as item {number}; expected {_describe(kind[0])}"


def _is_of(value: Any, kind: tuple[type, ...]) -> bool:
    # True and false are numbers to Python; NaN and Infinity, which it reads, are no numbers.
    if isinstance(value, bool):
        return bool in kind
    return isinstance(value, kind) and not (isinstance(value, float) and not math.isfinite(value))


def _describe(kind: tuple[type, ...]) -> str:
    return " or ".join(_NAMES[one] for one in kind if one is not int or float not in kind)


def _read_line(line: str, keys: Sequence[str], where: str, kinds: Mapping[str, Kind]) -> JsonObject:
    try:
        item = _parse(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    return require_keys(item, keys, where, **kinds)
