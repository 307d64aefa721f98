"""Write ScienceQA's problems as LLaVA's training records, or as lines of instruction and output.

A format such as ``QCM-LEA`` says what the question shows (C context, Q question, M options, L lecture,
E solution) and what the answer has (A answer, L lecture, E solution), and in which order.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import UserError
from llava.eval.benchmarks.options import LETTERS, require_letters
from llava.eval.benchmarks.scienceqa import problem_of, read_ids, read_problems
from llava.eval.files import JsonObject, require_keys, write_json, write_jsonl
from llava.options import CommandParser
from llava.utils import exit_on_user_error

INPUTS = ("CQM", "QCM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
OUTPUTS = ("A", "AL", "AE", "ALE", "AEL", "LA", "EA", "LEA", "ELA", "LEPA")
QUESTION_LABEL = "Question: "


def parse_format(text: str) -> tuple[str, str]:
    """Split a format into what the question shows and what the answer has.

    Raises:
        UserError: If it is not accepted.
    """
    shown, dash, said = text.partition("-")
    if not dash or shown not in INPUTS or said not in OUTPUTS:
        raise UserError(
            f"--prompt-format is {text!r}; accepted: one of {', '.join(INPUTS)}, a dash, and one of "
            f"{', '.join(OUTPUTS)}"
        )
    return shown, said


def question_text(problem: Mapping[str, Any], shown: str) -> str:
    """Return what the question shows of a problem, in the order of the format."""
    options = " ".join(
        f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem["choices"], strict=False)
    )
    explanations = {"L": problem.get("lecture") or "", "E": problem.get("solution") or ""}
    lines = {
        "C": f"Context: {problem.get('hint') or 'N/A'}",
        "Q": f"{QUESTION_LABEL}{problem['question']}",
        "M": f"Options: {options}",
    }
    # Lecture and solution share a line.
    parts = [
        lines.get(part) or f"BECAUSE: {' '.join(explanations[letter] for letter in part)}"
        for part in re.findall("[LE]+|[CQM]", shown)
    ]
    return _tidy("\n".join(parts)).removeprefix(QUESTION_LABEL)


def answer_text(problem: Mapping[str, Any], said: str) -> str:
    """Return what the answer says of a problem.

    In ``AL`` the solution stands and in ``AE`` the lecture, as in the published script.
    """
    lecture, solution = problem.get("lecture") or "", problem.get("solution") or ""
    letter = LETTERS[problem["answer"]]
    if said == "LEPA":
        parts = [
            *([f"LECTURE: {lecture}"] if lecture.strip() else []),
            *([f"SOLUTION: {solution}"] if solution.strip() else []),
            *("###", f"ANSWER: {letter}."),
        ]
        return _tidy("\n".join(parts))
    named = {"L": lecture, "E": solution}
    if said in ("AL", "AE"):
        named = {"L": solution, "E": lecture}
    explanation = " ".join(named[part] for part in said if part != "A")
    answer = f"The answer is {letter}."
    if said == "A":
        return answer
    return _tidy(f"{answer} BECAUSE: {explanation}" if said[0] == "A" else f"{explanation} {answer}")


def convert_to_llava(base_dir: Path, split: str, prompt_format: str) -> Path:
    """Write a split as LLaVA's records.

    Returns:
        ``BASE_DIR/llava_SPLIT_FORMAT.json``.

    Raises:
        UserError: If a file is missing, malformed or cannot be written, or the format is not accepted.
    """
    shown, said = parse_format(prompt_format)
    records = []
    for name, problem in read_split(base_dir, split).items():
        question, image = question_text(problem, shown), {}
        if problem.get("image"):
            image = {"image": f"{name}/{problem['image']}"}
            question += f"\n{DEFAULT_IMAGE_TOKEN}"
        turns = [
            {"from": "human", "value": question},
            {"from": "gpt", "value": answer_text(problem, said)},
        ]
        records.append({"id": name, **image, "conversations": turns})
    return write_json(base_dir / f"llava_{split}_{prompt_format}.json", records, indent=2)


def convert_to_jsonl(base_dir: Path, split: str, prompt_format: str) -> Path:
    """Write a split as lines of id, image, instruction and output.

    Returns:
        ``BASE_DIR/scienceqa_SPLIT_FORMAT.jsonl``.

    Raises:
        UserError: If a file is missing, malformed or cannot be written, or the format is not accepted.
    """
    shown, said = parse_format(prompt_format)
    lines: list[JsonObject] = [
        {
            "id": name,
            "image": f"{name}/{problem['image']}" if problem.get("image") else None,
            "instruction": question_text(problem, shown),
            "output": answer_text(problem, said),
        }
        for name, problem in read_split(base_dir, split).items()
    ]
    return write_jsonl(base_dir / f"scienceqa_{split}_{prompt_format}.jsonl", lines)


def read_split(base_dir: Path, split: str) -> dict[str, JsonObject]:
    """Read the problems of a split, by their ids.

    Raises:
        UserError: If a file is missing or malformed, or there is no such split.
    """
    problems = read_problems(base_dir)
    found = {name: problem_of(problems, name) for name in read_ids(base_dir, split)}
    for name, problem in found.items():
        require_keys(problem, ("question",), f"problem {name} of problems.json")
        require_letters(problem["choices"], f"problem {name} of problems.json")
    return found


def _tidy(text: str) -> str:
    """Collapse double spaces, once, as the published script does; and announce no reason that is empty."""
    return text.replace("  ", " ").strip().removesuffix("BECAUSE:").strip()


FUNCTIONS = {
    "convert_to_llava": (convert_to_llava, "QCM-LEA"),
    "convert_to_jsonl": (convert_to_jsonl, "QCM-LEPA"),
}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the two conversions.

    Raises:
        UserError: If a file is missing, malformed or cannot be written, or the format is not accepted.
    """
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("function", choices=FUNCTIONS, help="what to write")
    parser.add_argument("--base-dir", type=Path, required=True, help="has problems.json and pid_splits.json")
    parser.add_argument("--split", required=True, help="such as train, val, test, minitrain")
    parser.add_argument("--prompt-format", metavar="FORMAT", help="default: QCM-LEA, and QCM-LEPA for lines")
    options = parser.parse_args(argv)
    convert, usual = FUNCTIONS[options.function]
    print(convert(options.base_dir, options.split, options.prompt_format or usual))


if __name__ == "__main__":
    sys.exit(main())
