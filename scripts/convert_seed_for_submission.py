"""Score LLaVA's answers to SEED-Bench, and write them as its server takes them."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.eval.answers import read_answers
from llava.eval.benchmark import Mark, Question, Response
from llava.eval.benchmarks.seed import SEED, key_of, mark, metrics, read_truth, submission
from llava.eval.files import JsonObject, write_jsonl, write_score
from llava.options import CommandParser
from llava.utils import exit_on_user_error, refuse_overwriting


def score(truth: Mapping[int | str, JsonObject], answers: Mapping[str, JsonObject]) -> list[Mark]:
    """Score answers; a question without one counts as wrong.

    Args:
        truth: What is right, as `read_truth` returns it.
        answers: Records by the question's id, as text.
    """
    marks = []
    for key, item in truth.items():
        question = Question(key, "", group=item["group"], target=item["answer"])
        marks.append(mark(Response(question, answers.get(str(key), {"text": ""})["text"])))
    return marks


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
    truth = read_truth(options.annotation_file)
    answers = read_answers(options.result_file, truth, options.annotation_file)
    measured = metrics(score(truth, answers))
    summary = {name: measured.pop(name) for name in ("total", "image", "video")}
    for name, accuracy in measured.items():
        print(f"{name}: {accuracy:.2f}%")
    for name, accuracy in summary.items():
        print(f"{name.capitalize()} accuracy: {accuracy:.2f}%")
    texts = ((key_of(key), line["text"]) for key, line in answers.items())
    write_jsonl(options.result_upload_file, submission(texts))
    if options.path_to_all_results:
        write_score(options.path_to_all_results, SEED.title, summary["image"])


if __name__ == "__main__":
    sys.exit(main())
