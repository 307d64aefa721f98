"""``python -m llava.eval.launch COUNT ...``: ``llava.eval`` in several processes; errors stay sentences."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as launch

from llava.options import CommandParser, positive
from llava.utils import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Start processes on this machine.

    Args:
        argv: How many, and the arguments of each; those of the process if not given.

    Returns:
        The exit code: of the process that failed first, if one has.

    Raises:
        UserError: If it does not say how many.
    """
    parser = CommandParser(prog="python -m llava.eval.launch", description="llava.eval in several processes.")
    parser.add_argument("count", type=positive, help="how many")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="of each; see python -m llava.eval --help"
    )
    options = parser.parse_args(argv)
    # Each process has said what is wrong; torch would add a table and a traceback.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch(
            ["--standalone", "--nproc_per_node", str(options.count), "-m", "llava.eval", *options.arguments]
        )
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main())
