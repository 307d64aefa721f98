"""LLaVA's command that asks a worker something: ``python -m llava.serve.test_message``."""

import sys
from collections.abc import Iterator, Sequence

import requests

from llava.conversation import choose_template, find_template
from llava.errors import UserError
from llava.options import CommandParser, positive
from llava.serve.protocol import TIMEOUT_S, add_controller_address, address_option, read_chunks
from llava.serve.register_worker import post_json
from llava.utils import exit_on_user_error, printable


def find_worker(controller: str, model: str | None) -> tuple[str, str]:
    """Return the address of a worker for a model, or for the first that is served, and the model's name.

    Raises:
        UserError: If there is none.
    """
    post_json(f"{controller}/refresh_all_workers", timeout=4 * TIMEOUT_S)  # it asks all workers
    models = post_json(f"{controller}/list_models").get("models", [])
    name = model or next(iter(models), "")
    address = post_json(f"{controller}/get_worker_address", {"model": name}).get("address")
    if not address:
        raise UserError(f"{controller} has no worker for {name!r}; served: {', '.join(models) or 'none'}")
    return address, name


def stream_answer(worker: str, model: str, message: str, max_new_tokens: int) -> Iterator[str]:
    """Yield the answer piece by piece.

    Raises:
        UserError: If the worker does not answer, or answers with an error.
    """
    template = find_template(choose_template(None, model))
    conversation = template.copy()
    conversation.append_message(conversation.roles[0], message)
    conversation.append_message(conversation.roles[1], None)
    prompt = conversation.get_prompt()
    request = {
        "model": model,
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
        "temperature": 0.7,
        "stop": template.ends[1],
    }
    shown = len(prompt)
    try:
        with requests.Session() as session:
            session.trust_env = False
            response = session.post(
                f"{worker}/worker_generate_stream",
                json=request,
                headers={"User-Agent": "LLaVA Client"},
                stream=True,
                timeout=(TIMEOUT_S, None),  # other requests may be before this one
            )
            for chunk in read_chunks(response.iter_content(None)):
                if chunk.error_code:
                    raise UserError(f"{chunk.text} (error code {chunk.error_code})")
                yield chunk.text[shown:]
                shown = max(shown, len(chunk.text))
    except requests.RequestException as error:
        raise UserError(f"{worker} does not answer: {type(error).__name__}") from error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Send one message and print the answer as it comes.

    Args:
        argv: Arguments; those of the process if not given.

    Raises:
        UserError: If there is no worker, or it answers with an error.
    """
    parser = CommandParser(prog="python -m llava.serve.test_message", description="Ask a worker something.")
    add_controller_address(parser)
    parser.add_argument(
        "--worker-address",
        type=address_option,
        metavar="URL",
        help="ask this one, not the controller's choice",
    )
    parser.add_argument("--model-name", help="which model to ask (default: the controller's first)")
    parser.add_argument("--max-new-tokens", type=positive, default=32, metavar="N", help="(default: 32)")
    parser.add_argument("--message", default="What is a vision-language model?", help="what to ask")
    options = parser.parse_args(argv)
    worker, model = options.worker_address, options.model_name or ""
    if worker is None:
        worker, model = find_worker(options.controller_address, options.model_name)
    for piece in stream_answer(worker, model, options.message, options.max_new_tokens):
        sys.stdout.write(printable(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    sys.exit(main())
