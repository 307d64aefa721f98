"""``python -m llava.eval``; see `llava.eval.command`."""

import sys
from collections.abc import Sequence

from llava.eval.command import add_arguments, run
from llava.options import CommandParser
from llava.utils import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run a subcommand.

    Args:
        argv: Arguments; those of the process if not given.

    Raises:
        UserError: If a setting or a file does not serve.
    """
    parser = CommandParser(prog="python -m llava.eval", description="Evaluate a model on benchmarks.")
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
