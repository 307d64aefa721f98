"""Write LLaVA's answers to MMBench as its server takes them: a sheet of the questions with the answers."""

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.eval.answers import read_answers
from llava.eval.benchmarks.mmbench import read_table, write_sheet
from llava.options import CommandParser
from llava.utils import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Convert ``RESULT_DIR/EXPERIMENT.jsonl`` to ``UPLOAD_DIR/EXPERIMENT.xlsx``.

    Raises:
        UserError: If a file is missing, malformed or cannot be written.
    """
    parser = CommandParser(description=__doc__)
    parser.add_argument("--annotation-file", type=Path, required=True, help="table of MMBench (.tsv)")
    parser.add_argument("--result-dir", type=Path, required=True, help="folder of the answers")
    parser.add_argument("--upload-dir", type=Path, required=True, help="folder to write to")
    parser.add_argument("--experiment", required=True, help="name of both files, without their ends")
    options = parser.parse_args(argv)
    source = options.result_dir / f"{options.experiment}.jsonl"
    # Of answers to several orders of the options, the server wants the one to the table's own.
    table = read_table(options.annotation_file)
    ids = [row["index"] for row in table]
    records = read_answers(source, ids, options.annotation_file, lambda line: line.get("round_id", 0) == 0)
    target = options.upload_dir / f"{options.experiment}.xlsx"
    write_sheet(target, table, {key: line["text"] for key, line in records.items()})
    print(target)


if __name__ == "__main__":
    sys.exit(main())
