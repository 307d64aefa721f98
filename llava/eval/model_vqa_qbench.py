"""LLaVA's ``python -m llava.eval.model_vqa_qbench``: answers a file of Q-Bench."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.eval.benchmark import Question, Response
from llava.eval.benchmarks.qbench import INSTRUCTIONS, answered, load_questions
from llava.eval.files import read_objects, write_jsonl
from llava.eval.vqa_command import VqaCommand, chunk_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--lang", choices=INSTRUCTIONS, default="en", help="of the questions (default: en)")


def load(options: argparse.Namespace) -> list[Question]:
    """Read the questions that the options name.

    Raises:
        UserError: If the file is missing or malformed.
    """
    return load_questions(
        Path(options.question_file).expanduser(), Path(options.image_folder).expanduser(), options.lang
    )


def write_items(options: argparse.Namespace, responses: Sequence[Response]) -> None:
    """Write what Q-Bench takes in the place of LLaVA's records.

    Raises:
        UserError: If a file cannot be read or written.
    """
    items = read_objects(Path(options.question_file).expanduser())
    chunk = chunk_of(items, options.num_chunks, options.chunk_idx)
    texts = [response.text for response in responses]
    write_jsonl(Path(options.answers_file).expanduser(), answered(chunk, texts))


COMMAND = VqaCommand(
    "model_vqa_qbench",
    "Answer a file of Q-Bench; the answers are its items, each with the response.",
    load=load,
    add_arguments=add_arguments,
    finish=write_items,
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
