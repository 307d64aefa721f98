"""LLaVA's command that asks a worker something: ``python -m llava.serve.test_message``."""

import sys
from collections.abc import Sequence

from llava.conversation import choose_template, find_template
from llava.options import CommandParser, positive, utf8
from llava.serve.protocol import GenerateRequest, add_controller_address, address_option
from llava.serve.worker_client import WorkerClient, stream_answer
from llava.utils import exit_on_user_error, printable


def render(message: str, model: str, max_new_tokens: int) -> GenerateRequest:
    """Return the request that asks a model something, with the template of its name."""
    template = find_template(choose_template(None, model))
    conversation = template.copy()
    conversation.append_message(conversation.roles[0], message)
    conversation.append_message(conversation.roles[1], None)
    return GenerateRequest(
        conversation.get_prompt(), temperature=0.7, max_new_tokens=max_new_tokens, stop=template.ends[1]
    )


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
    parser.add_argument(
        "--message", type=utf8, default="What is a vision-language model?", help="what to ask"
    )
    options = parser.parse_args(argv)
    worker, model = options.worker_address, options.model_name or ""
    if worker is None:
        client = WorkerClient(options.controller_address)
        served = client.models()
        model = model or next(iter(served), "")
        worker = client.find_worker(model)
    shown = 0
    for text in stream_answer(worker, model, render(options.message, model, options.max_new_tokens)):
        sys.stdout.write(printable(text[shown:]))
        sys.stdout.flush()
        shown = len(text)
    sys.stdout.write("\n")


if __name__ == "__main__":
    sys.exit(main())
