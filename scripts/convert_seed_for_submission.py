"""Score LLaVA's answers to SEED-Bench, and write them as its server takes them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.eval.benchmark import Mark, Question, Response
from llava.eval.benchmarks.seed import SEED, key_of, mark, metrics, read_truth, submission
from llava.eval.files import read_jsonl, write_jsonl, write_score
from llava.options import CommandParser
from llava.utils import exit_on_user_error, refuse_overwriting


def score(annotation_file: Path, answers: dict[int | str, str]) -> list[Mark]:
    """Score answers; a question without one counts as wrong.

    Args:
        annotation_file: The official ``SEED-Bench.json``.
        answers: By the question's id.

    Raises:
        UserError: If the file is missing or malformed.
    """
    return [
        mark(Response(Question(key, "", group=item["group"], target=item["answer"]), answers.get(key, "")))
        for key, item in read_truth(annotation_file).items()
    ]


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Score and convert an answers file.

    Raises:
        UserError: If a file is missing, malformed or cannot be written.
    """
    parser = CommandParser(description=__doc__)
    parser.add_argument("--annotation-file", type=Path, required=True, help="SEED-Bench.json")
    parser.add_argument("--result-file", type=Path, required=True, help="answers of model_vqa_loader")
    parser.add_argument("--result-upload-file", type=Path, required=True, help="JSONL file to write")
    parser.add_argument("--path_to_all_results", type=Path, help="text file that gets the image accuracy")
    options = parser.parse_args(argv)
    refuse_overwriting("--result-upload-file", options.result_upload_file, options.result_file)
    lines = read_jsonl(options.result_file, "question_id", "text")
    answers = {key_of(line["question_id"]): line["text"] for line in lines}
    measured = metrics(score(options.annotation_file, answers))
    summary = {name: measured.pop(name) for name in ("total", "image", "video")}
    for name, accuracy in measured.items():
        print(f"{name}: {accuracy:.2f}%")
    for name, accuracy in summary.items():
        print(f"{name.capitalize()} accuracy: {accuracy:.2f}%")
    write_jsonl(options.result_upload_file, submission(answers.items()))
    if options.path_to_all_results:
        write_score(options.path_to_all_results, SEED.title, summary["image"])


if __name__ == "__main__":
    sys.exit(main())
