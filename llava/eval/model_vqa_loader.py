"""LLaVA's ``python -m llava.eval.model_vqa_loader``: answers a JSONL file of questions in few words."""

import sys
from collections.abc import Sequence

from llava.eval.vqa_command import VqaCommand, questions_of
from llava.utils import exit_on_user_error

COMMAND = VqaCommand(
    "model_vqa_loader",
    "Answer a file of questions; answers have at most 128 tokens unless --max_new_tokens says more.",
    load=questions_of,
    max_new_tokens=128,
    adapts_template=True,
)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command on the arguments of a command line.

    Raises:
        UserError: If a file, the model or a setting does not serve.
    """
    COMMAND.run(argv)


if __name__ == "__main__":
    sys.exit(main())
