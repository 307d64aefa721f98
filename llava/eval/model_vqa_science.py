"""LLaVA's ``python -m llava.eval.model_vqa_science``: answers a file of ScienceQA."""

import argparse
import sys
from pathlib import Path

from llava.eval.benchmark import Question
from llava.eval.benchmarks.scienceqa import load_questions
from llava.eval.vqa_command import VqaCommand


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--answer-prompter", action="store_true", help="accepted, and without effect")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter")


def load(options: argparse.Namespace) -> list[Question]:
    """Read the questions that the options name.

    Raises:
        UserError: If the file is missing or malformed.
    """
    return load_questions(
        Path(options.question_file).expanduser(),
        Path(options.image_folder).expanduser(),
        with_instruction=options.single_pred_prompt,
    )


COMMAND = VqaCommand(
    "model_vqa_science",
    "Answer a file of ScienceQA.",
    load=load,
    add_arguments=add_arguments,
    question_file="tables/question.json",
    template="llava_v0",
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
