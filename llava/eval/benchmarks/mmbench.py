"""MMBench (arXiv:2307.06281), in English and Chinese: right is what is right in every order of options."""

import base64
import binascii
import csv
import hashlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from llava.constants import OPTION_LETTER
from llava.engine.base import Generation
from llava.errors import UserError
from llava.eval.benchmark import Benchmark, Mark, Metrics, Question, Response, percent
from llava.eval.benchmarks.options import LETTERS, chosen_letter, option_lines
from llava.eval.files import read_text, writing
from llava.image_io import load_image_bytes

Row = Mapping[str, str]

INSTRUCTIONS = {"en": OPTION_LETTER, "cn": "请直接回答选项字母。"}
MOST_OPTIONS = 4
REQUIRED = ("index", "question", "A", "B", "image")
# Dropped in a submission, where the answer stands in the sixth column.
NOT_SUBMITTED = ("hint", "category", "source", "image", "comment", "l2-category")
PREDICTION_COLUMN = 6
# What pandas, with which the published code reads the table, takes for an empty cell. "Na" is none: it may
# be sodium.
EMPTY = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
    *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
}
# Copies of a question with its options in another order have its index plus a multiple of this.
COPY_OFFSET = 1_000_000
NO_OPTION = ""  # what is right where the table names an option that it does not have


def load(language: str, folder: Path, split: str) -> list[Question]:
    """Read the questions of a split, each once for every order of its options.

    A table that has the copies in other orders already is asked as it is.

    Args:
        language: ``en`` or ``cn``.
        folder: Of the benchmark.
        split: Name of the table without ``.tsv``.

    Raises:
        UserError: If the table is missing or malformed.
    """
    path = folder / f"{split}.tsv"
    rows = read_table(path)
    has_copies = any(_number(row, path) >= COPY_OFFSET for row in rows)
    return load_questions(path, language, all_rounds=not has_copies)


def load_questions(
    path: Path, language: str, *, all_rounds: bool, with_instruction: bool = True
) -> list[Question]:
    """Read the questions of a table.

    Args:
        path: TSV file.
        language: ``en`` or ``cn``.
        all_rounds: Ask each as many times as it has options, which rotate to the left.
        with_instruction: Ask for the option's letter.

    Raises:
        UserError: If the table is missing or malformed.
    """
    rows = read_table(path)
    images = _image_readers(rows, path)
    instruction = f"\n{INSTRUCTIONS[language]}" if with_instruction else ""
    return [
        _question(row, number, images[row["index"]], instruction, path)
        for row in rows
        for number in range(max(1, len(options_of(row))) if all_rounds else 1)
    ]


def read_table(path: Path) -> list[Row]:
    """Read a table of MMBench.

    Raises:
        MissingFileError: If there is none.
        UserError: If it is malformed; the row is named by its number.
    """
    text = read_text(path)
    usual = csv.field_size_limit(sys.maxsize)  # images are longer than what csv takes for a cell
    try:
        rows: list[Row] = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
    except csv.Error as error:
        raise UserError(f"{path} is not a table of values with tabs between them: {error}") from error
    finally:
        csv.field_size_limit(usual)
    for number, row in enumerate(rows, start=1):
        if missing := [name for name in REQUIRED if row.get(name) is None]:
            raise UserError(f"{path}, row {number} lacks {', '.join(missing)}")
        if None in row:  # where csv puts what is left over
            raise UserError(f"{path}, row {number} has more cells than the table has columns")
    return rows


def options_of(row: Row) -> list[str]:
    """Return the options up to the first empty one."""
    options = []
    for letter in LETTERS[:MOST_OPTIONS]:
        if _is_empty(row.get(letter)):
            break
        options.append(row[letter])
    return options


def mark(response: Response) -> Mark:
    """Compare the letter that is meant with the right one; each order of options counts by itself first."""
    question = response.question
    letter = chosen_letter(response.text, question.extra["options"])
    is_right = response.error is None and letter == question.target
    return Mark(question.unit, float(is_right), question.group)


def metrics(marks: Sequence[Mark]) -> Metrics:
    """Return the share of questions that are right in every order, of all and of each category, in percent.

    ``first order`` is the share with the options in the order of the table.
    """
    by_question: dict[str, list[Mark]] = {}
    for item in marks:
        by_question.setdefault(item.unit, []).append(item)
    groups: dict[str, list[float]] = {}
    for items in by_question.values():
        groups.setdefault(items[0].group, []).append(min(item.points for item in items))
    everything = [points for group in groups.values() for points in group]
    first = percent([items[0].points for items in by_question.values()])
    by_group = {name: percent(points) for name, points in groups.items()} if len(groups) > 1 else {}
    return {"circular accuracy": percent(everything), "first order": first} | by_group


def export(responses: Sequence[Response], folder: Path, split: str, run_id: str) -> Path:
    """Write the sheet that MMBench's server takes.

    Raises:
        UserError: If it cannot be written.
    """
    answers = {
        str(response.question.id): response.text
        for response in responses
        if response.question.extra["round_id"] == 0
    }
    path = folder / "answers_upload" / split / f"{run_id}.xlsx"
    return write_sheet(path, read_table(folder / f"{split}.tsv"), answers)


def write_sheet(path: Path, rows: Sequence[Row], answers: Mapping[str, str]) -> Path:
    """Write rows of a table with the answers to them, without images and categories.

    Args:
        path: XLSX file.
        rows: Of the table.
        answers: By index.

    Raises:
        UserError: If openpyxl is missing, or the file cannot be written.
    """
    try:
        from openpyxl import Workbook
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError as error:
        raise UserError("a sheet for MMBench's server needs openpyxl: pip install 'llava[eval]'") from error
    names = [name for name in rows[0] if name not in NOT_SUBMITTED] if rows else list(REQUIRED[:4])
    names.insert(min(PREDICTION_COLUMN, len(names)), "prediction")
    book = Workbook()
    sheet = book.active
    for number, line in enumerate([dict(zip(names, names, strict=True)), *rows], start=1):
        values = {**line, "prediction": answers.get(line["index"], line.get("prediction", ""))}
        for column, name in enumerate(names, start=1):
            text = ILLEGAL_CHARACTERS_RE.sub("", values[name] or "")
            _set(sheet.cell(number, column), text, is_number=name == "index")
    with writing(path) as unfinished:
        book.save(unfinished)
    return path


def _set(cell: Any, text: str, *, is_number: bool) -> None:
    """Write an index as a number, and all else as text.

    An answer ``007`` would lose its zeros as a number, and one that begins with ``=`` would be a formula.
    """
    if is_number and text.isascii() and text.isdecimal():
        cell.value = int(text)
        return
    cell.value = text
    cell.data_type = "s"


def _question(
    row: Row, number: int, image: Callable[[], Image.Image], instruction: str, path: Path
) -> Question:
    options = options_of(row)
    letters = list(LETTERS[: len(options)])
    order = [*letters[number:], *letters[:number]]
    options = [*options[number:], *options[:number]]
    hint = "" if _is_empty(row.get("hint")) else f"{row['hint']}\n"
    text = f"{hint}{row['question']}\n{option_lines(options)}"
    answer = row.get("answer") or ""
    return Question(
        id=_number(row, path),
        text=text + instruction,
        image=image,
        prompt=text,
        clip_text=text,
        unit=str(_number(row, path) % COPY_OFFSET),
        group=row.get("category") or "",
        # An answer that is none of the options, such as an empty cell, leaves all of them wrong.
        target=letters[order.index(answer)] if answer in order else NO_OPTION if answer else None,
        extra={"round_id": number, "options": options, "option_char": order},
    )


def _image_readers(rows: Sequence[Row], path: Path) -> dict[str, Callable[[], Image.Image]]:
    """Return a function for each row's image, the same for rows that share one, so that it is encoded once.

    In some tables, copies of a question name the row of the image by its index.
    """
    sources = {row["index"]: row["image"] for row in rows}
    stored = {index: sources.get(image, image) for index, image in sources.items()}
    readers = {image: StoredImage(image, f"{path}: the image of row {i}") for i, image in stored.items()}
    return {index: readers[image] for index, image in stored.items()}


@dataclass(frozen=True, slots=True, eq=False)
class StoredImage:
    """An image in a cell of the table, decoded when it is called.

    Attributes:
        text: Base64 of the image file.
        name: What error messages call it.
    """

    text: str
    name: str

    @property
    def digest(self) -> str:
        """Tells images apart."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def __call__(self) -> Image.Image:
        """Return the image.

        Raises:
            UserError: If it cannot be decoded.
        """
        try:
            data = base64.b64decode(self.text, validate=False)
        except binascii.Error as error:
            raise UserError(f"{self.name} is not base64: {error}") from error
        return load_image_bytes(data, self.name)


def _number(row: Row, path: Path) -> int:
    try:
        return int(row["index"])
    except ValueError as error:
        raise UserError(f"{path}: an index is {row['index']!r}; expected a whole number") from error


def _is_empty(cell: str | None) -> bool:
    return cell is None or cell in EMPTY or cell.strip().lower() in ("", "nan", "none")


def _benchmark(name: str, title: str, language: str, splits: tuple[str, ...]) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        folder=name,
        needs=("{split}.tsv",),
        load=partial(load, language),
        splits=splits,
        answers="answers/{split}/{id}.jsonl",
        mark=mark,
        metrics=metrics,
        export=export,
        generation=Generation(max_new_tokens=1024),
    )


ENGLISH = ("mmbench_dev_20230712", "mmbench_dev_en_20231003", "mmbench_test_en_20231003")
CHINESE = ("mmbench_dev_cn_20231003", "mmbench_test_cn_20231003")
MMBENCH = _benchmark("mmbench", "MMBench (Circular Acc)", "en", ENGLISH)
MMBENCH_CN = _benchmark("mmbench_cn", "MMBench-CN (Circular Acc)", "cn", CHINESE)
