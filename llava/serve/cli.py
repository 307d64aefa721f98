"""A conversation in the terminal: ``llava chat``, and LLaVA's ``python -m llava.serve.cli``.

It works in a pipe as well: one question a line, until an empty line or the end of the input. Lines that begin
with a slash are commands.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llava.errors import UserError
from llava.image_io import load_image_or_url
from llava.options import (
    CommandParser,
    add_generation_options,
    add_model_options,
    load_assistant,
    read_generation,
)
from llava.utils import error_line, exit_on_user_error, printable

if TYPE_CHECKING:
    from PIL import Image

    from llava.assistant import Assistant, Chat
    from llava.engine.base import Generation

QUIT = "/quit"

load_image = load_image_or_url  # LLaVA's name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add LLaVA's arguments, and those that every command here has."""
    parser.add_argument(
        "--image-file", "--image", metavar="FILE", help="what it is about: a file, or an http(s) URL"
    )
    parser.add_argument("--debug", action="store_true", help="show each turn's prompt and answer on stderr")
    add_generation_options(parser, temperature=0.2)
    add_model_options(parser)


def run(options: argparse.Namespace) -> None:
    """Talk until the user is done.

    Raises:
        UserError: If the image, the model or a setting is not valid.
    """
    image = None if options.image_file is None else load_image_or_url(options.image_file)
    generation = read_generation(options)
    talk(load_assistant(options), image, generation, debug=options.debug)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Arguments; those of the process if not given.

    Raises:
        UserError: As `run`.
    """
    parser = CommandParser(prog="python -m llava.serve.cli", description="Have a conversation.")
    add_arguments(parser)
    run(parser.parse_args(argv))


def talk(
    assistant: "Assistant", image: "Image.Image | None", generation: "Generation", *, debug: bool = False
) -> None:
    """Take one line of input after the other until an empty one or the end; a wrong one ends nothing."""
    chat = assistant.chat(image)
    while (line := read_line(f"{chat.roles[0]}: ")) and line != QUIT:
        try:
            if line.startswith("/"):
                chat = obey(line, chat, assistant)
            else:
                answer(chat, line, generation, debug=debug)
        except UserError as error:  # the conversation goes on as it was
            print(error_line(error), file=sys.stderr)
    print("exit...")


def answer(chat: "Chat", question: str, generation: "Generation", *, debug: bool = False) -> None:
    """Print the answer to a question as the tokens come.

    Raises:
        UserError: If it cannot be answered.
    """
    print(f"{chat.roles[1]}: ", end="", flush=True)
    try:
        for piece in chat.stream(question, generation=generation):
            print(printable(piece), end="", flush=True)
    finally:
        print(flush=True)
    if debug:
        print({"prompt": chat.prompt, "outputs": chat.answers[-1].text}, file=sys.stderr)


def obey(command: str, chat: "Chat", assistant: "Assistant") -> "Chat":
    """Carry out a command, and return the conversation that goes on.

    Args:
        command: A line that begins with a slash.
        chat: The conversation so far.
        assistant: Begins a new one for another image.

    Raises:
        UserError: If there is no such command, or what it names does not serve.
    """
    from llava.model.multimodal_encoder.reducers.registry import parse_reduction

    word, _, value = command.partition(" ")
    if word == "/image":
        image = load_image_or_url(value.strip())
        reduction = chat.token_reduction
        chat = assistant.chat(image)
        chat.token_reduction = reduction
        print(f"a new conversation, about {printable(value.strip())}")
    elif word == "/reduction":
        parse_reduction(value.strip())
        chat.token_reduction = value.strip()
        print(f"from now on with {value.strip()}")
    else:
        raise UserError(f"{word} is no command; accepted: /image FILE, /reduction SPEC, {QUIT}")
    return chat


def read_line(prompt: str) -> str:
    """Read one line without leading or trailing whitespace; the end of the input reads as an empty line."""
    try:
        return input(prompt).strip()
    except EOFError:
        print()
        return ""


if __name__ == "__main__":
    sys.exit(main())
