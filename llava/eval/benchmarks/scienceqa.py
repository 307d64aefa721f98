"""ScienceQA (arXiv:2209.09513): questions of school science with options, some about an image."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN, OPTION_LETTER
from llava.engine.base import Generation
from llava.errors import UserError
from llava.eval.benchmark import Benchmark, Mark, Metrics, Question, Response, percent
from llava.eval.files import ID, INTEGER, JsonObject, Kind, read_json, read_objects, require_keys

SPLIT = "test"
OPTIONS = "ABCDE"
FAILED = "FAILED"
SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
LAST_LOWER_GRADE = 6
SEPARATOR = ","
SPLITS_FILE = "pid_splits.json"
PROBLEM_KEYS = (
    *("answer", "choices", "question?", "image?", "hint?", "grade?", "subject?", "lecture?", "solution?"),
)


@dataclass(frozen=True, slots=True)
class Solution:
    """What is right.

    Attributes:
        answer: Index of the right choice.
        choices: How many there are.
    """

    answer: int
    choices: int


def load(folder: Path, _split: str) -> list[Question]:
    """Read the questions and what is right.

    Raises:
        UserError: If a file is missing or malformed, or lacks a question: all of the split count.
    """
    problems, ids = read_problems(folder), read_ids(folder, SPLIT)
    path = folder / "llava_test_CQM-A.json"
    questions = load_questions(path, folder / "images" / SPLIT, with_instruction=True)
    asked = {str(question.id) for question in questions}
    if missing := [name for name in ids if name not in asked]:
        raise UserError(
            f"{path} lacks {len(missing)} of the {len(ids)} problems of the split {SPLIT!r} in "
            f"{SPLITS_FILE}, such as {missing[0]}"
        )
    return [_with_solution(question, problem_of(problems, str(question.id))) for question in questions]


def _with_solution(question: Question, problem: JsonObject) -> Question:
    solution = Solution(problem["answer"], len(problem["choices"]))
    return replace(question, group=SEPARATOR.join(groups_of(problem)), target=solution)


def load_questions(path: Path, image_folder: Path, *, with_instruction: bool) -> list[Question]:
    """Read LLaVA's file of questions.

    Args:
        path: JSON list.
        image_folder: Where their images lie.
        with_instruction: Ask for the option's letter.

    Raises:
        UserError: If it is missing or malformed.
    """
    questions = []
    for number, item in enumerate(read_objects(path, "id", "conversations", "image?")):
        where, turns = f"{path}, item {number}", item["conversations"]
        value = require_keys(turns[0] if turns else None, ("value",), f"{where}, its first turn")["value"]
        text = value.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        if with_instruction:
            text += f"\n{OPTION_LETTER}"
        has_image = bool(item.get("image"))
        questions.append(
            Question(
                id=item["id"],
                text=text,
                image=image_folder / item["image"] if has_image else None,
                prompt=f"{DEFAULT_IMAGE_TOKEN}\n{text}" if has_image else text,
                unit=str(item["id"]),
            )
        )
    return questions


def read_problems(folder: Path) -> dict[str, JsonObject]:
    """Read the official ``problems.json``.

    Raises:
        UserError: If it is missing or malformed.
    """
    return require_keys(read_json(folder / "problems.json"), (), str(folder / "problems.json"))


def read_ids(folder: Path, split: str) -> list[str]:
    """Read the ids of a split's problems from the official ``pid_splits.json``.

    Raises:
        UserError: If it is missing or malformed, or there is no such split.
    """
    path = folder / SPLITS_FILE
    kinds: dict[str, Kind] = {split: [ID]}
    ids = require_keys(read_json(path), (split,), str(path), **kinds)[split]
    return [str(name) for name in ids]


def problem_of(problems: Mapping[str, JsonObject], name: str) -> JsonObject:
    """Return a problem, whose answer is one of its choices.

    Raises:
        UserError: If there is none, or it is malformed.
    """
    where = f"problem {name} of problems.json"
    problem = require_keys(problems.get(name), PROBLEM_KEYS, where, answer=INTEGER)
    answer, count = problem["answer"], len(problem["choices"])
    if not 0 <= answer < count:
        raise UserError(f"{where}: 'answer' is {answer!r}; accepted: the index of one of its {count} choices")
    return problem


def groups_of(problem: Mapping[str, Any]) -> list[str]:
    """Return the groups of the paper that a problem belongs to: subject, context and grade."""
    contexts = [name for name, key in (("TXT", "hint"), ("IMG", "image")) if problem.get(key)]
    grade = int(re.sub(r"[^0-9]", "", problem.get("grade") or "")[:2] or 0)
    return [
        SUBJECTS.get(problem.get("subject") or "", "other subject"),
        *(contexts or ["NO"]),
        "G1-6" if grade <= LAST_LOWER_GRADE else "G7-12",
    ]


def read_letter(text: str, options: Sequence[str] = OPTIONS) -> str:
    """Return the option that an answer names, read as published; ``FAILED`` if it names none."""
    if text in list(options):  # not a part of several letters
        return text
    if len(text) >= 3 and text[0] in options and text[1:3] == ". ":
        return text[0]
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else FAILED


def choice_of(letter: str, choices: int, options: Sequence[str] = OPTIONS) -> int:
    """Return the index of a letter's choice; -1 if there is no such choice."""
    return options.index(letter) if letter in options[:choices] else -1


def mark(response: Response) -> Mark:
    """Compare the choice with the right one."""
    question, solution = response.question, response.question.target
    choice = choice_of(read_letter(response.text), solution.choices)
    is_right = response.error is None and choice == solution.answer
    return Mark(question.unit, float(is_right), question.group)


def metrics(marks: Sequence[Mark]) -> Metrics:
    """Return the accuracy in percent, of all and of the paper's groups: subjects, contexts, grades."""
    groups: dict[str, list[float]] = {}
    for item in marks:
        for name in item.group.split(SEPARATOR):
            groups.setdefault(name, []).append(item.points)
    everything = {"accuracy": percent([item.points for item in marks])}
    return everything | {name: percent(groups[name]) for name in sorted(groups)}


SCIENCEQA = Benchmark(
    name="scienceqa",
    title="ScienceQA (Acc)",
    folder="scienceqa",
    needs=("llava_test_CQM-A.json", "problems.json", SPLITS_FILE, "images/test"),
    load=load,
    mark=mark,
    metrics=metrics,
    generation=Generation(max_new_tokens=1024),
)
