"""LLaVA's command that registers a worker by hand: ``python -m llava.serve.register_worker``."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import requests

from llava.errors import UserError
from llava.options import CommandParser
from llava.serve.protocol import (
    TIMEOUT_S,
    Registration,
    add_controller_address,
    address_option,
    key_headers,
    key_option,
)
from llava.utils import exit_on_user_error


def post_json(
    url: str, body: Mapping[str, Any] | None = None, key: str | None = None, timeout: float = TIMEOUT_S
) -> Any:
    """Return the JSON that a controller or a worker replies.

    Args:
        url: Of the controller or worker, with the path.
        body: What is sent, if anything.
        key: Of the controller, if it has one.
        timeout: Seconds.

    Raises:
        UserError: If nobody answers there, or the request is refused.
    """
    try:
        with requests.Session() as session:
            session.trust_env = False  # no proxy stands between the parts of a server
            response = session.post(url, json=body, headers=key_headers(key), timeout=timeout)
        reply = response.json()
    except requests.RequestException as error:  # no JSON is one of these, too
        raise UserError(f"{url} does not answer: {type(error).__name__}") from error
    if not response.ok:
        reason = reply.get("detail") if isinstance(reply, dict) else json.dumps(reply)
        raise UserError(f"{url} refuses: {reason}")
    return reply


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Register a worker.

    Args:
        argv: Arguments; those of the process if not given.

    Raises:
        UserError: If the controller does not answer, or refuses the worker.
    """
    parser = CommandParser(
        prog="python -m llava.serve.register_worker", description="Register a worker at a controller."
    )
    add_controller_address(parser)
    parser.add_argument(
        "--worker-name", required=True, type=address_option, metavar="URL", help="its address"
    )
    parser.add_argument(
        "--check-heart-beat",
        action="store_true",
        help="drop the worker when its heart-beats stay away; by default it stays until it stops answering",
    )
    parser.add_argument("--key", type=key_option, help="of the controller, if it was started with one")
    options = parser.parse_args(argv)
    registration = Registration(options.worker_name, options.check_heart_beat)
    # The controller asks the worker first.
    post_json(
        f"{options.controller_address}/register_worker", registration.body, options.key, timeout=2 * TIMEOUT_S
    )


if __name__ == "__main__":
    sys.exit(main())
