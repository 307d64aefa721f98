"""LLaVA's ``python -m llava.eval.eval_science_qa``: scores a file of answers to ScienceQA's questions."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import UserError
from llava.eval.answers import read_answers
from llava.eval.benchmark import percent
from llava.eval.benchmarks.scienceqa import (
    FAILED,
    OPTIONS,
    SCIENCEQA,
    SPLITS_FILE,
    choice_of,
    problem_of,
    read_ids,
    read_letter,
    read_problems,
)
from llava.eval.files import JsonObject, write_json, write_score
from llava.options import CommandParser
from llava.utils import exit_on_user_error, refuse_overwriting


@dataclass(frozen=True, slots=True)
class Scored:
    """An answer and what it is worth.

    Attributes:
        question_id: Of the problem.
        text: The answer; ``FAILED`` where there is none.
        prompt: Of its record.
        letter: What it names, or ``FAILED``.
        choice: Index of that, or -1.
        answer: Index of the right choice.
    """

    question_id: str
    text: str
    prompt: str
    letter: str
    choice: int
    answer: int

    @property
    def is_multimodal(self) -> bool:
        """Whether an image was shown."""
        return DEFAULT_IMAGE_TOKEN in self.prompt

    def analysis(self, options: Sequence[str]) -> JsonObject:
        """Return LLaVA's record for a reader."""
        return {
            "question_id": self.question_id,
            "parsed_ans": self.letter,
            "ground_truth": options[self.answer],
            "question": self.prompt,
            "pred": self.text,
            "is_multimodal": self.is_multimodal,
        }


def score(base_dir: Path, result_file: Path, split: str, options: Sequence[str] = OPTIONS) -> list[Scored]:
    """Score the answers to all problems of a split; one without an answer counts as wrong.

    Args:
        base_dir: Folder with ``problems.json`` and ``pid_splits.json``.
        result_file: Answers of model_vqa_science.
        split: Of the problems.
        options: Letters.

    Raises:
        UserError: If a file is missing or malformed, there is no such split, or a right answer has no letter.
    """
    problems, ids = read_problems(base_dir), read_ids(base_dir, split)
    lines = read_answers(result_file, ids, base_dir / SPLITS_FILE)
    scored = []
    for name in ids:
        problem = problem_of(problems, name)
        if problem["answer"] >= len(options):
            raise UserError(
                f"--options is {options!r}; problem {name} needs at least {problem['answer'] + 1} letters"
            )
        line = lines.get(name, {"text": FAILED})
        letter = read_letter(line["text"], options)
        choice = choice_of(letter, len(problem["choices"]), options)
        scored.append(
            Scored(name, line["text"], str(line.get("prompt") or ""), letter, choice, problem["answer"])
        )
    return scored


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command on the arguments of a command line.

    Raises:
        UserError: If a file is missing, malformed or cannot be written.
    """
    options = _parser().parse_args(argv)
    for flag, output in (("--output-file", options.output_file), ("--output-result", options.output_result)):
        refuse_overwriting(flag, output, options.result_file)
    scored = score(options.base_dir, options.result_file, options.split, options.options)
    right = [item for item in scored if item.choice == item.answer]
    accuracy = percent([float(item.choice == item.answer) for item in scored])
    on_images = percent([float(item.choice == item.answer) for item in scored if item.is_multimodal])
    print(
        f"Total: {len(scored)}, Correct: {len(right)}, Accuracy: {accuracy:.2f}%, "
        f"IMG-Accuracy: {on_images:.2f}%"
    )
    if options.output_file:
        wrong = [item for item in scored if item.choice != item.answer]
        lists = {"correct": right, "incorrect": wrong}
        document = {name: [item.analysis(options.options) for item in items] for name, items in lists.items()}
        write_json(options.output_file, document, indent=2)
    if options.output_result:
        result = {
            "acc": accuracy,
            "correct": len(right),
            "count": len(scored),
            "results": {item.question_id: item.choice for item in scored},
            "outputs": {item.question_id: item.text for item in scored},
        }
        write_json(options.output_result, result, indent=2)
    if options.path_to_all_results:
        write_score(options.path_to_all_results, SCIENCEQA.title, accuracy)
        write_score(options.path_to_all_results, "ScienceQA IMG (Acc)", on_images)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m llava.eval.eval_science_qa", description="Score answers to ScienceQA."
    )
    parser.add_argument("--base-dir", type=Path, required=True, help="has problems.json and pid_splits.json")
    parser.add_argument("--result-file", type=Path, required=True, help="answers of model_vqa_science")
    parser.add_argument("--output-file", type=Path, help="gets the right and the wrong answers (JSON)")
    parser.add_argument("--output-result", type=Path, help="gets the accuracy and all choices (JSON)")
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--options", default=OPTIONS, help=f"letters of the options (default: {OPTIONS})")
    parser.add_argument("--path_to_all_results", type=Path, help="text file that gets the accuracies")
    return parser


if __name__ == "__main__":
    sys.exit(main())
