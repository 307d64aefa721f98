"""Write LLaVA's answers to VQAv2 as its server takes them: one to every question of the whole test."""

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.eval.answers import read_answers
from llava.eval.benchmarks.vqav2 import WHOLE_TEST, submission
from llava.eval.files import read_jsonl, write_json
from llava.options import CommandParser
from llava.utils import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Convert ``answers/<split>/<ckpt>/merge.jsonl``.

    Raises:
        UserError: If a file is missing, malformed or cannot be written.
    """
    parser = CommandParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("playground/data/eval/vqav2"), help="its folder")
    parser.add_argument("--ckpt", required=True, help="name of the run, a folder below answers/<split>")
    parser.add_argument("--split", required=True, help="such as llava_vqav2_mscoco_test-dev2015")
    options = parser.parse_args(argv)
    source = options.dir / "answers" / options.split / options.ckpt / "merge.jsonl"
    whole = options.dir / WHOLE_TEST
    ids = [line["question_id"] for line in read_jsonl(whole, "question_id")]
    records = read_answers(source, ids, whole)
    answers = {key: records[str(key)]["text"] for key in ids if str(key) in records}
    target = write_json(
        options.dir / "answers_upload" / options.split / f"{options.ckpt}.json", submission(answers, ids)
    )
    print(f"{len(answers)} answers, {len(ids) - len(answers)} empty: {target}")


if __name__ == "__main__":
    sys.exit(main())
