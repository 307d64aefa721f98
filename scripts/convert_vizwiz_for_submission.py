"""Write LLaVA's answers to VizWiz as its server takes them."""

import sys
from collections.abc import Sequence
from pathlib import Path

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
    results = read_jsonl(options.result_file, "question_id", "text")
    texts = {line["question_id"]: line["text"] for line in results}
    questions = read_jsonl(options.annotation_file, "question_id", "image")
    images = {line["question_id"]: line["image"] for line in questions}
    answers = {image: texts[key] for key, image in images.items() if key in texts}
    write_json(options.result_upload_file, submission(answers, list(images.values())))


if __name__ == "__main__":
    sys.exit(main())
