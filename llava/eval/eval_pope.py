"""LLaVA's ``python -m llava.eval.eval_pope``: scores a file of answers to POPE's questions."""

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.errors import UserError
from llava.eval.answers import read_answers
from llava.eval.benchmark import Mark, Response
from llava.eval.benchmarks.pope import POPE, confusion, load_questions, mark, metrics
from llava.eval.files import has_error, write_score
from llava.options import CommandParser
from llava.utils import exit_on_user_error


def score(question_file: Path, annotation_dir: Path, result_file: Path) -> list[Mark]:
    """Score the answers to questions of the categories that have labels; one without an answer is wrong.

    Args:
        question_file: LLaVA's ``llava_pope_test.jsonl``.
        annotation_dir: Folder of ``coco_pope_<category>.json``.
        result_file: Answers, with ``question_id`` and ``text``.

    Raises:
        UserError: If a file is missing or malformed, or no question has labels or an answer.
    """
    questions = load_questions(question_file, annotation_dir, Path(), every_category=False)
    if not questions:
        raise UserError(f"{question_file} has no question of a category with labels in {annotation_dir}")
    answers = read_answers(result_file, [question.id for question in questions], question_file)
    marks = []
    for question in questions:
        line = answers.get(str(question.id))
        has_failed = line is None or has_error(line)
        text = "" if line is None else line["text"]
        marks.append(mark(Response(question, text, error="no answer" if has_failed else None)))
    return marks


def describe(marks: Sequence[Mark]) -> str:
    """Return LLaVA's report: counts and measures of every category."""
    measured = metrics(marks)
    lines = []
    for category in dict.fromkeys(item.group for item in marks):
        counts = confusion([item for item in marks if item.group == category])
        names = ("f1", "accuracy", "precision", "recall", "yes")
        shares = {name: measured[f"{category} {name}"] / 100 for name in names}
        lines += [
            f"Category: {category}, # samples: {sum(counts.values())}",
            "TP\tFP\tTN\tFN\t",
            "\t".join(str(counts[name]) for name in ("TP", "FP", "TN", "FN")),
            f"Accuracy: {shares['accuracy']}",
            f"Precision: {shares['precision']}",
            f"Recall: {shares['recall']}",
            f"F1 score: {shares['f1']}",
            f"Yes ratio: {shares['yes']}",
            ", ".join(f"{shares[name]:.3f}" for name in names),
            "=" * 36,
        ]
    return "\n".join(lines)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command on the arguments of a command line.

    Raises:
        UserError: If a file is missing, malformed or cannot be written.
    """
    parser = CommandParser(prog="python -m llava.eval.eval_pope", description="Score answers to POPE.")
    parser.add_argument("--annotation-dir", type=Path, required=True, help="folder of coco_pope_*.json")
    parser.add_argument("--question-file", type=Path, required=True)
    parser.add_argument("--result-file", type=Path, required=True, help="answers of model_vqa_loader")
    parser.add_argument("--path_to_all_results", type=Path, help="text file that gets the mean F1")
    options = parser.parse_args(argv)
    marks = score(options.question_file, options.annotation_dir, options.result_file)
    print(describe(marks))
    if options.path_to_all_results:
        write_score(options.path_to_all_results, POPE.title, metrics(marks)["f1"])


if __name__ == "__main__":
    sys.exit(main())
