"""A conversation about one picture in the terminal: ``python -m llava.serve.cli --image-file photo.jpg``.

It works in a pipe as well: one question a line, until an empty line or the end of the input.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llava.image_io import load_image_or_url
from llava.options import CommandParser, add_model_options, load_assistant
from llava.utils import exit_on_user_error, printable

if TYPE_CHECKING:
    from llava.assistant import Chat
    from llava.engine.base import Generation


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Talk about one picture until the user is done.

    Args:
        argv: Arguments; those of the process if not given.

    Raises:
        UserError: If the picture, the model or a setting does not serve.
    """
    options = build_parser().parse_args(argv)
    image = load_image_or_url(options.image_file)

    from llava.engine.base import Generation

    generation = Generation(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    talk(load_assistant(options).chat(image), generation, debug=options.debug)


def build_parser() -> CommandParser:
    """Build the parser of LLaVA's arguments, and of those that every command here has."""
    parser = CommandParser(prog="python -m llava.serve.cli", description="Talk about a picture.")
    parser.add_argument("--image-file", required=True, help="the picture: a file, or an http(s) URL")
    parser.add_argument("--temperature", type=float, default=0.2, help="0 is greedy (default: 0.2)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=512, metavar="N", help="longest answer (default: 512)"
    )
    parser.add_argument("--debug", action="store_true", help="show each turn's prompt and answer on stderr")
    add_model_options(parser)
    return parser


def talk(chat: "Chat", options: "Generation", *, debug: bool = False) -> None:
    """Answer one line of input after the other, as the tokens come, until an empty line or the end."""
    human, model = chat.roles
    while question := read_line(f"{human}: "):
        print(f"{model}: ", end="", flush=True)
        for piece in chat.stream(question, generation=options):
            print(printable(piece), end="", flush=True)
        print(flush=True)
        if debug:
            print({"prompt": chat.prompt, "outputs": chat.answers[-1].text}, file=sys.stderr)
    print("exit...")


def read_line(prompt: str) -> str:
    """Read one line without the spaces around it; the end of the input reads as an empty line."""
    try:
        return input(prompt).strip()
    except EOFError:
        print()
        return ""


if __name__ == "__main__":
    sys.exit(main())
