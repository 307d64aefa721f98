"""LLaVA's one-shot command and function: ``python -m llava.eval.run_llava`` and ``eval_model(args)``."""

import sys
from collections.abc import Sequence
from typing import Any

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER
from llava.errors import UserError
from llava.image_io import load_image_or_url
from llava.options import (
    CommandParser,
    add_generation_options,
    add_model_options,
    load_assistant,
    read_generation,
    utf8,
)
from llava.utils import exit_on_user_error, printable

load_image = load_image_or_url


def load_images(image_files: Sequence[str]) -> list[Image.Image]:
    """Read images from files or URLs."""
    return [load_image_or_url(name) for name in image_files]


def eval_model(args: Any) -> None:
    """Ask one question about any number of images and print the answer.

    Args:
        args: Any object with LLaVA's attributes ``model_path``, ``model_base``, ``query``, ``conv_mode``,
            ``image_file`` (paths or URLs joined by ``sep``, or None), ``sep``, ``temperature``, ``top_p``,
            ``num_beams`` and ``max_new_tokens``; ``model_name`` is ignored, as the checkpoint's files say
            what it is. The attributes of ``llava.options.add_model_options`` are used where present.

    Raises:
        UserError: If an image, the model, the question or a setting does not serve.
    """
    from llava.messages import Request, answer_of

    images = load_images(image_parser(args))
    request = Request.ask(
        args.query.replace(IMAGE_PLACEHOLDER, DEFAULT_IMAGE_TOKEN), *images, generation=read_generation(args)
    )
    (result,) = load_assistant(args).answer_all([request])
    print(printable(answer_of(result).text))


def image_parser(args: Any) -> list[str]:
    """Return the names in ``image_file``, without blanks around them; none if it is missing.

    Args:
        args: See `eval_model`.

    Raises:
        UserError: If a name or what joins them is empty.
    """
    if not args.sep:
        raise UserError("--sep is empty; it joins the names of several images, such as a comma")
    if args.image_file is None:
        return []
    names = [name.strip() for name in args.image_file.split(args.sep)]
    if not all(names):
        raise UserError(
            f"--image-file is {args.image_file!r}; expected names joined by {args.sep!r}, none of them empty"
        )
    return names


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run ``eval_model`` on the arguments of a command line.

    Args:
        argv: Arguments; those of the process if not given.

    Raises:
        UserError: As ``eval_model``.
    """
    parser = CommandParser(
        prog="python -m llava.eval.run_llava", description="Ask one question about images."
    )
    parser.add_argument("--image-file", help="images (files or http(s) URLs), joined by --sep")
    parser.add_argument(
        "--query", type=utf8, required=True, help="the question; <image-placeholder> marks an image's place"
    )
    parser.add_argument("--sep", default=",", help="what joins the images (default: a comma)")
    add_generation_options(parser, temperature=0.2, separator="_")
    add_model_options(parser)
    eval_model(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
