"""``python -m llava.bench``; see `llava.bench.command`."""

import sys
from collections.abc import Sequence

from llava.bench.command import add_arguments, run
from llava.options import CommandParser
from llava.utils import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or compare what was measured.

    Args:
        argv: Arguments; those of the process if not given.

    Raises:
        UserError: If an option or the machine does not serve.
    """
    parser = CommandParser(
        prog="python -m llava.bench", description="Measure what answers cost, stage by stage."
    )
    add_arguments(parser)
    run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
