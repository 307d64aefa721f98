"""LLaVA's ``python -m llava.eval.eval_textvqa``: scores files of answers to TextVQA's questions."""

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.errors import MissingFileError, UserError
from llava.eval.benchmarks.textvqa import TEXTVQA, answers_to, question_of_prompt, read_annotations
from llava.eval.files import has_error, read_jsonl, write_score
from llava.eval.m4c_evaluator import TextVQAAccuracyEvaluator
from llava.options import CommandParser
from llava.utils import exit_on_user_error


def score(annotation_file: Path, result_file: Path) -> list[float]:
    """Return the accuracy of every answer, 0 to 1.

    Args:
        annotation_file: The official ``TextVQA_0.5.1_val.json``.
        result_file: Answers, with ``question_id`` (of the image), ``prompt`` and ``text``.

    Raises:
        UserError: If a file is missing or malformed, or a question is not in the annotations.
    """
    references = read_annotations(annotation_file)
    evaluator = TextVQAAccuracyEvaluator()
    points = []
    for line in read_jsonl(result_file, "question_id", "prompt", "text"):
        key = (str(line["question_id"]), question_of_prompt(line["prompt"]).lower())
        correct = evaluator.score(line["text"], answers_to(key, references, result_file))
        points.append(0.0 if has_error(line) else correct)
    return points


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command on the arguments of a command line.

    Raises:
        UserError: If a file is missing, malformed or cannot be written.
    """
    parser = CommandParser(prog="python -m llava.eval.eval_textvqa", description="Score answers to TextVQA.")
    parser.add_argument("--annotation-file", type=Path, required=True, help="TextVQA_0.5.1_val.json")
    parser.add_argument("--result-file", type=Path, help="answers of model_vqa_loader")
    parser.add_argument("--result-dir", type=Path, help="folder of such files, instead")
    parser.add_argument("--path_to_all_results", type=Path, help="text file that gets the accuracy")
    options = parser.parse_args(argv)
    files = [options.result_file] if options.result_file else []
    if options.result_dir and not files:
        files = sorted(options.result_dir.glob("*.jsonl"))
        if not files:
            raise MissingFileError(f"there are no files *.jsonl in {options.result_dir}")
    if not files:
        raise UserError("neither --result-file nor --result-dir is given")
    for path in files:
        points = score(options.annotation_file, path)
        accuracy = 100 * sum(points) / len(points) if points else 0.0
        print(f"{path.stem}\nSamples: {len(points)}\nAccuracy: {accuracy:.2f}%\n")
        if options.path_to_all_results:
            title = TEXTVQA.title if len(files) == 1 else f"{TEXTVQA.title}, {path.stem}"
            write_score(options.path_to_all_results, title, accuracy)


if __name__ == "__main__":
    sys.exit(main())
