"""The console script ``llava``: a table of subcommands, each imported only when it is asked for."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from llava import __version__
from llava.options import CommandParser
from llava.utils import USER_ERROR_EXIT_CODE, exit_on_user_error


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand.

    Attributes:
        name: What the user types after ``llava``.
        summary: Its line in ``llava --help``.
        module: Module with ``add_arguments(parser)`` and ``run(args)``; heavy imports belong into ``run``.
    """

    name: str
    summary: str
    module: str


COMMANDS = (
    Command("ask", "ask one question, mostly about an image", "llava.ask"),
    Command("chat", "have a conversation, mostly about an image", "llava.serve.cli"),
    Command("eval", "evaluate a model on benchmarks", "llava.eval.command"),
    Command("reducers", "list the token reductions", "llava.reducers"),
    Command("compare", "compare reductions on the same questions", "llava.compare.command"),
    Command("bench", "measure what answers cost, stage by stage", "llava.bench.command"),
    Command("serve", "answer over HTTP, as OpenAI's interface does", "llava.serve.api_server"),
    Command("demo", "open the demo, a web page", "llava.serve.demo"),
)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one subcommand.

    Args:
        argv: Arguments after the program's name; those of the process if not given.

    Returns:
        The exit code, ``None`` meaning 0.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(chosen=next((word for word in arguments if not word.startswith("-")), None))
    options = parser.parse_args(arguments)
    if options.module is None:
        parser.print_help(sys.stderr)
        return USER_ERROR_EXIT_CODE
    return importlib.import_module(options.module).run(options)


def build_parser(chosen: str | None) -> CommandParser:
    """Build the parser of all subcommands; only the chosen one is imported and knows its arguments."""
    parser = CommandParser(prog="llava", description="LLaVA-1.5 with TRIM: ask images questions.")
    parser.add_argument("--version", action="version", version=f"llava {__version__}")
    parser.set_defaults(module=None)
    subparsers = parser.add_subparsers(title="commands", metavar="command")
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.name, help=command.summary, description=f"{command.summary}."
        )
        subparser.set_defaults(module=command.module)
        if command.name == chosen:
            importlib.import_module(command.module).add_arguments(subparser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
