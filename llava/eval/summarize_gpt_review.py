"""LLaVA's ``python -m llava.eval.summarize_gpt_review``: mean ratings of files of reviews."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from llava.errors import MissingFileError, UserError
from llava.eval.files import JsonObject, read_jsonl
from llava.options import CommandParser
from llava.utils import exit_on_user_error, printable

PREFIXES = ("gpt4_text", "reviews_", "review_")
VERSIONS = ("0314", "0613")  # of GPT-4, which LLaVA and TRIM asked


def describe(path: Path, ignored: Sequence[str] = ()) -> str:
    """Return the name of a file of reviews, and a line for all of them and for every category.

    A line holds the candidate's ratings in percent of the reference's, then both means on a scale to 100.
    Ratings of -1, which published reviews have where a reply could not be read, count as they are.

    Args:
        path: The file.
        ignored: Ids of questions that do not count.

    Raises:
        UserError: If the file is missing or malformed, or no review is left.
    """
    lines = [
        line
        for line in read_jsonl(path, "question_id", "tuple", "category?")
        if str(line["question_id"]) not in ignored
    ]
    if not lines:
        raise UserError(f"{path} has no reviews of questions that count")
    groups: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        pair = _read_pair(line, path)
        for name in ("all", *([line["category"]] if line.get("category") is not None else [])):
            groups.setdefault(name, []).append(pair)
    return "\n".join([label(path), *(_describe_group(name, groups[name]) for name in sorted(groups))])


def _read_pair(line: JsonObject, path: Path) -> tuple[float, float]:
    if len(line["tuple"]) != 2:
        raise UserError(
            f"{path}: the tuple of question {line['question_id']} is {line['tuple']!r:.40}; "
            "accepted: two numbers"
        )
    reference, candidate = line["tuple"]
    return reference, candidate


def _describe_group(name: str, pairs: Sequence[tuple[float, float]]) -> str:
    # Rounded twice, as the published numbers are.
    reference, candidate = (round(fmean(ratings), 3) for ratings in zip(*pairs, strict=True))
    relative = candidate / reference * 100 if reference else 0.0
    return f"{name} {relative:.1f} {reference * 10:.1f} {candidate * 10:.1f}"


def label(path: Path) -> str:
    """Return what a file of reviews is called in the summary."""
    return path.stem.removeprefix("gpt4_text_")


def version(path: Path) -> str:
    """Return the version of GPT-4 that a file's name tells of."""
    return VERSIONS["0613" in label(path)]


def find_files(folder: Path) -> list[Path]:
    """Return the files of reviews in a folder: all if it is named so, else those that are.

    Raises:
        MissingFileError: If the folder is not there.
    """
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}")
    is_for_reviews = "review" in str(folder)
    return [path for path in folder.glob("*.jsonl") if is_for_reviews or path.name.startswith(PREFIXES)]


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command on the arguments of a command line.

    Raises:
        UserError: If there are no reviews, or a file is malformed.
    """
    options = _parser().parse_args(argv)
    if not (options.files or options.dir):
        raise UserError("there is nothing to sum up; accepted: --dir FOLDER or --files FILE ...")
    files = [
        path
        for path in sorted(options.files or find_files(options.dir))
        if all(word in label(path) for word in options.select) and options.version in (None, version(path))
    ]
    if not files:
        raise MissingFileError(f"there are no such files of reviews in {options.dir or 'the files named'}")
    print(printable("\n\n".join(describe(path, options.ignore) for path in files)))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m llava.eval.summarize_gpt_review",
        description="Sum up reviews: the answers' rating in percent of the reference's, then both ratings.",
    )
    parser.add_argument("-d", "--dir", type=Path, help="folder with files of reviews")
    parser.add_argument("-v", "--version", choices=VERSIONS, help="only files of this version of GPT-4")
    parser.add_argument(
        "-s", "--select", nargs="*", default=[], help="only files with these words in the name"
    )
    parser.add_argument("-f", "--files", nargs="*", default=[], type=Path, help="these files instead")
    parser.add_argument("-i", "--ignore", nargs="*", default=[], help="ids of questions that do not count")
    return parser


if __name__ == "__main__":
    sys.exit(main())
