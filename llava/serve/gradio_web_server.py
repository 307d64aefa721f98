"""LLaVA's web page: ``python -m llava.serve.gradio_web_server``.

With a controller it is a page over the models of its workers; without one, it is the demo.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from llava.errors import UserError
from llava.options import CommandParser, add_model_options
from llava.serve import demo
from llava.serve.moderation import Moderation
from llava.serve.protocol import CONTROLLER_ADDRESS, address_option
from llava.serve.worker_client import WorkerClient
from llava.utils import exit_on_user_error, setup_logging

logger = logging.getLogger(__name__)


def run_over_workers(controller: str, options: argparse.Namespace) -> None:
    """Serve a page over the models of a controller's workers until it is interrupted.

    Raises:
        UserError: If gradio is missing, or the port, the log or a setting does not serve.
    """
    demo.require_gradio()
    from llava.serve.demo_page import build_worker_page
    from llava.serve.worker_session import WorkerDemo

    objection = Moderation.from_environment().objection if options.moderate else lambda question: None
    worker_demo = WorkerDemo(WorkerClient(controller), demo.open_log(options), objection)
    reload = options.model_list_mode == "reload"
    page = build_worker_page(worker_demo, demo.examples(), reload=reload, embed=options.embed)
    demo.launch(page, options)


def find_controller(url: str | None) -> str | None:
    """Return the address of the controller that was named, or else of one on this machine that answers."""
    if url is not None:
        return url
    try:
        WorkerClient(CONTROLLER_ADDRESS).models(refresh=False)
    except UserError:
        return None
    return CONTROLLER_ADDRESS


def build_parser() -> CommandParser:
    """Build the parser of LLaVA's options and of the demo's."""
    parser = CommandParser(
        prog="python -m llava.serve.gradio_web_server",
        description="Open LLaVA's web page over a controller's workers, or without a controller the demo.",
    )
    parser.add_argument(
        *("--controller-url", "--controller"),
        type=address_option,
        metavar="URL",
        help=f"of the controller (default: {CONTROLLER_ADDRESS} if one answers there, else none)",
    )
    parser.add_argument(
        "--model-list-mode",
        choices=("once", "reload"),
        default="once",
        help="when the controller is asked which models there are: now, or for every page (default: once)",
    )
    parser.add_argument(
        "--moderate", action="store_true", help="have OpenAI's moderation judge questions (OPENAI_API_KEY)"
    )
    parser.add_argument("--embed", action="store_true", help="leave out the title, for a page inside another")
    demo.add_page_arguments(parser)
    add_model_options(parser)
    return parser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Serve a page until it is interrupted.

    Args:
        argv: Arguments; those of the process if not given.

    Raises:
        UserError: If gradio is missing, or an option does not serve.
    """
    options = build_parser().parse_args(argv)
    setup_logging()
    controller = find_controller(options.controller_url)
    if controller is None:
        logger.info("no controller answers at %s: the demo answers by itself", CONTROLLER_ADDRESS)
        demo.run(options)
    else:
        if options.model_path is not None:
            logger.warning("--model-path is not used: the workers of %s answer", controller)
        run_over_workers(controller, options)


if __name__ == "__main__":
    sys.exit(main())
