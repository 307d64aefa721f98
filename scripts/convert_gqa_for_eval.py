"""Write LLaVA's answers to GQA as GQA's own scorer reads them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.eval.benchmarks.gqa import predictions
from llava.eval.files import read_jsonl, write_json
from llava.options import CommandParser
from llava.utils import exit_on_user_error, refuse_overwriting


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Convert an answers file.

    Raises:
        UserError: If a file is missing, malformed or cannot be written.
    """
    parser = CommandParser(description=__doc__)
    parser.add_argument("--src", type=Path, required=True, help="answers of model_vqa_loader")
    parser.add_argument("--dst", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    refuse_overwriting("--dst", options.dst, options.src)
    answers = [(line["question_id"], line["text"]) for line in read_jsonl(options.src, "question_id", "text")]
    write_json(options.dst, predictions(answers))


if __name__ == "__main__":
    sys.exit(main())
