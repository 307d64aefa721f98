"""LLaVA's ``python -m llava.eval.model_vqa_mmbench``: answers a table of MMBench."""

import argparse
import sys
from pathlib import Path

from llava.eval.benchmark import Question
from llava.eval.benchmarks.mmbench import INSTRUCTIONS, load_questions
from llava.eval.vqa_command import VqaCommand


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--all-rounds", action="store_true", help="ask with every rotation of the options")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter")
    parser.add_argument("--lang", choices=INSTRUCTIONS, default="en", help="of that request (default: en)")


def load(options: argparse.Namespace) -> list[Question]:
    """Read the questions that the options name.

    Raises:
        UserError: If the table is missing or malformed.
    """
    return load_questions(
        Path(options.question_file).expanduser(),
        options.lang,
        all_rounds=options.all_rounds,
        with_instruction=options.single_pred_prompt,
    )


COMMAND = VqaCommand(
    "model_vqa_mmbench",
    "Answer a table of MMBench.",
    load=load,
    add_arguments=add_arguments,
    adapts_template=True,
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
