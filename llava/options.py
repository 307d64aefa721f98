"""Options that several command lines share: which model to load, and how it is to answer."""

import argparse
from typing import TYPE_CHECKING, Any, NoReturn

from llava.errors import UserError

if TYPE_CHECKING:
    from llava.assistant import Assistant


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, like all other errors of the commands."""

    def error(self, message: str) -> NoReturn:
        """Report a wrong command line.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message} (see {self.prog} --help)")


def positive(text: str) -> int:
    """Read an option that counts things, of which there must be at least one.

    Raises:
        argparse.ArgumentTypeError: If it is no whole number above 0.
    """
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of things; accepted: 1 or more")
    return int(text)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model to load and how."""
    model = parser.add_argument_group("model")
    model.add_argument("--model-path", help="checkpoint folder or hub id (default: the bundled shapes model)")
    model.add_argument(
        "--model-base", help="base model of a checkpoint that is a projector or a LoRA adapter"
    )
    model.add_argument("--vision-tower", help="CLIP folder or hub id to use instead of the checkpoint's")
    model.add_argument(
        "--token-reduction",
        metavar="SPEC",
        help="instead of the checkpoint's: none, TRIM:-1 (adaptive), TRIM:0.25, TRIM:64, Random:64, Pool:64",
    )
    model.add_argument(
        "--dtype",
        metavar="TYPE",
        help="float32, float16 or bfloat16 (default: float32 on a CPU, float16 on other devices)",
    )
    model.add_argument("--device", help="cuda, mps or cpu (default: the best one of this machine)")
    model.add_argument(
        "--conv-mode", metavar="TEMPLATE", help="conversation template instead of the checkpoint's"
    )
    model.add_argument("--load-8bit", action="store_true", help="quantize the language model to 8 bits")
    model.add_argument("--load-4bit", action="store_true", help="quantize the language model to 4 bits")


def load_assistant(options: Any) -> "Assistant":
    """Load the model that the options of ``add_model_options`` describe.

    Args:
        options: Parsed arguments, or any object with some of the same attributes.

    Raises:
        UserError: If it cannot be loaded.
    """
    from llava.assistant import Assistant

    return Assistant.load(
        getattr(options, "model_path", None),
        model_base=getattr(options, "model_base", None),
        vision_tower=getattr(options, "vision_tower", None),
        token_reduction=getattr(options, "token_reduction", None),
        dtype=getattr(options, "dtype", None),
        device=getattr(options, "device", None),
        conv_mode=getattr(options, "conv_mode", None),
        load_8bit=getattr(options, "load_8bit", False),
        load_4bit=getattr(options, "load_4bit", False),
    )
