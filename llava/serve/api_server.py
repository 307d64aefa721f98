"""``llava serve``: a model behind OpenAI's chat completions."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket

from llava.errors import UserError
from llava.options import (
    add_engine_options,
    add_model_options,
    load_assistant,
    name_of_model,
    port_or_any,
    positive,
)
from llava.serve.web import listen, warn_if_open
from llava.utils import setup_logging

KEY_VARIABLE = "LLAVA_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the server."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: this machine only)"
    )
    parser.add_argument(
        "--port", type=port_or_any, default=8000, help="default: 8000; 0 for any that is free"
    )
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"that clients must send (default: the variable {KEY_VARIABLE})"
    )
    parser.add_argument(
        "--concurrency",
        type=positive,
        default=16,
        metavar="N",
        help="requests answered at once (default: 16)",
    )
    parser.add_argument(
        "--queue",
        type=positive,
        default=64,
        metavar="N",
        help="requests that may wait besides; more are refused (default: 64)",
    )
    parser.add_argument(
        "--allow-urls",
        action="store_true",
        help="fetch images whose http(s) URLs a request names, from public addresses only",
    )
    add_model_options(parser)
    add_engine_options(parser)


def run(options: argparse.Namespace) -> None:
    """Serve a model until Ctrl-C or SIGTERM.

    Raises:
        UserError: If fastapi is missing, or the key, the address or the model does not serve.
    """
    try:
        from llava.serve.api import ApiServer, ChatCompletions, Settings
    except ImportError as error:
        raise UserError(f"llava serve needs {error.name}: pip install 'llava[serve]'") from error
    from llava.assistant import SHAPES_CHECKPOINT

    setup_logging()
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    path = options.model_path or str(SHAPES_CHECKPOINT)
    settings = Settings(
        models=(name_of_model(options.model_path), path),
        api_key=find_key(options.api_key),
        concurrency=options.concurrency,
        queue=options.queue,
        allow_urls=options.allow_urls,
    )
    # Clients that come while the model is loaded wait for it.
    if settings.api_key is None:
        warn_if_open(options.host, f"--api-key or {KEY_VARIABLE} sets a key")
    with listen(options.host, options.port) as listener:
        server = ApiServer(ChatCompletions(load_assistant(options), settings))
        print(f"{settings.models[0]} is served at {address(listener)}/v1", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
        with contextlib.suppress(KeyboardInterrupt):  # the server has ended cleanly by then
            server.run([listener])


def find_key(option: str | None) -> str | None:
    """Return the key of the command line or of the environment; None if there is none.

    Raises:
        UserError: If it cannot be sent in a header, or is empty, as that of a variable that was not set.
    """
    key = os.environ.get(KEY_VARIABLE) if option is None else option
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            f"the API key (--api-key or {KEY_VARIABLE}) is empty or has characters that no header can hold; "
            "accepted: printable ASCII without spaces"
        )
    return key


def address(listener: socket.socket) -> str:
    """Return the URL of a socket that listens."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
