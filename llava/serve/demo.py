"""``llava demo``: the demo in one process, with the bundled model or any other."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import UserError
from llava.options import (
    CommandParser,
    add_engine_options,
    add_model_options,
    load_assistant,
    name_of_model,
    port,
    positive,
)
from llava.serve.conversation_log import ConversationLog
from llava.utils import exit_on_user_error

if TYPE_CHECKING:
    from gradio import Blocks

    from llava.serve.demo_page import Example

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = (
    ("images/crowded.png", "What shape is the yellow object?"),
    ("images/crowded.png", "What color is the star?"),
    ("images/shapes.png", "Is there a blue circle in the picture?"),
)
MOST_UPLOADED = "20mb"  # of a file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the demo."""
    add_page_arguments(parser)
    add_model_options(parser)
    add_engine_options(parser)


def add_page_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every page."""
    parser.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    parser.add_argument("--port", type=port, default=7860, help="default: 7860")
    parser.add_argument(
        "--concurrency-count", type=positive, default=16, help="visitors answered at once (default: 16)"
    )
    parser.add_argument("--log-dir", type=Path, help="folder for conversations and votes; none by default")
    parser.add_argument("--log-images", action="store_true", help="keep images and addresses there too")
    parser.add_argument("--share", action="store_true", help="open a public address through gradio's servers")


def run(options: argparse.Namespace) -> None:
    """Serve the demo until it is interrupted.

    Raises:
        UserError: If gradio is missing, or the model, the port or the log does not serve.
    """
    require_gradio()
    from llava.serve.demo_page import build_page
    from llava.serve.demo_session import Demo

    log = open_log(options)
    demo = Demo(load_assistant(options), name_of_model(options.model_path), log)
    launch(build_page(demo, examples()), options)


def require_gradio() -> None:
    """Refuse to open a page without what that needs.

    Raises:
        UserError: If gradio is not installed.
    """
    if find_spec("gradio") is None:
        raise UserError("the demo needs gradio: pip install 'llava[serve]'")


def open_log(options: argparse.Namespace) -> ConversationLog | None:
    """Return the log that the options name, if they name one.

    Raises:
        UserError: If it cannot be written, or only images are to be kept.
    """
    if options.log_images and options.log_dir is None:
        raise UserError("--log-images needs --log-dir FOLDER, where they are kept")
    return ConversationLog(options.log_dir, log_images=options.log_images) if options.log_dir else None


def examples() -> list[Example]:
    """Return the examples whose images are there, as in a clone of the repository."""
    from llava.serve.demo_page import Example

    files = [(REPOSITORY / image, question) for image, question in EXAMPLES]
    return [Example(image, question) for image, question in files if image.exists()]


def launch(page: Blocks, options: argparse.Namespace) -> None:
    """Serve a page until Ctrl-C or SIGTERM.

    Raises:
        UserError: If the address does not serve.
    """
    import gradio as gr

    from llava.serve.web import warn_if_open

    if not options.share:  # which is meant for everybody
        warn_if_open(options.host, "the page asks nobody who they are")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    page.queue(default_concurrency_limit=options.concurrency_count, max_size=64)
    try:
        page.launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            max_file_size=MOST_UPLOADED,
            allowed_paths=[],
            footer_links=[],
            # Fonts of the visitor's own machine: the default theme's come from elsewhere.
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )
    except OSError as error:
        raise UserError(f"the demo cannot listen at {options.host}:{options.port}: {error}") from error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo on the arguments of a command line.

    Raises:
        UserError: As `run`.
    """
    parser = CommandParser(prog="python -m llava.serve.demo", description="Open the demo.")
    add_arguments(parser)
    run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
