"""Write LLaVA's answers to MM-Vet as MM-Vet's own scorer reads them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.eval.benchmarks.mmvet import write_results
from llava.eval.files import read_jsonl
from llava.options import CommandParser
from llava.utils import exit_on_user_error, refuse_overwriting


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Convert an answers file.

    Raises:
        UserError: If a file is missing, malformed or cannot be written.
    """
    parser = CommandParser(description=__doc__)
    parser.add_argument("--src", type=Path, required=True, help="answers of model_vqa")
    parser.add_argument("--dst", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    refuse_overwriting("--dst", options.dst, options.src)
    lines = read_jsonl(options.src, "question_id", "text")
    write_results(options.dst, [(line["question_id"], line["text"]) for line in lines])


if __name__ == "__main__":
    sys.exit(main())
