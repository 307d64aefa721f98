"""Write LLaVA's answers to VizWiz as its server takes them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.errors import UserError
from llava.eval.answers import read_answers
from llava.eval.benchmarks.vizwiz import submission
from llava.eval.files import read_jsonl, write_json
from llava.options import CommandParser
from llava.utils import exit_on_user_error, refuse_overwriting


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Convert an answers file.

    Raises:
        UserError: If a file is missing, malformed or cannot be written, or a question has no answer.
    """
    parser = CommandParser(description=__doc__)
    parser.add_argument("--annotation-file", type=Path, required=True, help="llava_test.jsonl")
    parser.add_argument("--result-file", type=Path, required=True, help="answers of model_vqa_loader")
    parser.add_argument("--result-upload-file", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    refuse_overwriting("--result-upload-file", options.result_upload_file, options.result_file)
    questions = read_jsonl(options.annotation_file, "question_id", "image")
    ids = [str(line["question_id"]) for line in questions]
    records = read_answers(options.result_file, ids, options.annotation_file)
    if missing := [key for key in ids if key not in records]:
        raise UserError(
            f"{len(missing)} of {len(ids)} questions have no answer, the first {missing[0]}; "
            "the server takes none with gaps"
        )
    answers = [(line["image"], records[key]["text"]) for line, key in zip(questions, ids, strict=True)]
    write_json(options.result_upload_file, submission(answers))


if __name__ == "__main__":
    sys.exit(main())
