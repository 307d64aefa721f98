"""LLaVA's ``python -m llava.eval.model_vqa``: answers a JSONL file of questions, with long answers."""

import sys
from collections.abc import Sequence

from llava.eval.vqa_command import VqaCommand, questions_of
from llava.utils import exit_on_user_error

COMMAND = VqaCommand("model_vqa", "Answer a file of questions.", load=questions_of)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command on the arguments of a command line.

    Raises:
        UserError: If a file, the model or a setting does not serve.
    """
    COMMAND.run(argv)


if __name__ == "__main__":
    sys.exit(main())
