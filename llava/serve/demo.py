"""``llava demo``: the demo in one process, with the bundled model or any other."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.errors import UserError
from llava.options import (
    CommandParser,
    add_engine_options,
    add_model_options,
    load_assistant,
    name_of_model,
    positive,
)
from llava.utils import exit_on_user_error

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = (
    ("images/crowded.png", "What shape is the yellow object?"),
    ("images/crowded.png", "What color is the star?"),
    ("images/shapes.png", "Is there a blue circle in the picture?"),
)
MOST_UPLOADED = "20mb"  # of a file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the demo."""
    parser.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    parser.add_argument("--port", type=positive, default=7860, help="default: 7860")
    parser.add_argument("--concurrency-count", type=positive, default=8, help="visitors answered at once")
    parser.add_argument("--log-dir", type=Path, help="folder for conversations and votes; none by default")
    parser.add_argument("--log-images", action="store_true", help="keep images and addresses there too")
    parser.add_argument("--share", action="store_true", help="open a public address through gradio's servers")
    add_model_options(parser)
    add_engine_options(parser)


def run(options: argparse.Namespace) -> None:
    """Serve the demo until it is interrupted.

    Raises:
        UserError: If gradio is missing, or the model, the port or the log does not serve.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError("the demo needs gradio: pip install 'llava[serve]'") from error
    from llava.serve.conversation_log import ConversationLog
    from llava.serve.demo_page import Example, build_page
    from llava.serve.demo_session import Demo

    if options.log_images and options.log_dir is None:
        raise UserError("--log-images needs --log-dir FOLDER, where they are kept")
    log = ConversationLog(options.log_dir, log_images=options.log_images) if options.log_dir else None
    page = build_page(
        Demo(load_assistant(options), name_of_model(options.model_path), log),
        [
            Example(REPOSITORY / image, question)
            for image, question in EXAMPLES
            if (REPOSITORY / image).exists()
        ],
    )
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
