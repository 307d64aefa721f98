"""LLaVA's model worker: answers for a controller's clients; ``python -m llava.serve.model_worker``.

Clients render the prompt. New tokens are limited to what the context leaves behind the visual tokens that an
image is really reduced to, where LLaVA counts all its patches.
"""

import argparse
import logging
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

from llava.errors import PromptTooLongError, UserError
from llava.options import (
    CommandParser,
    add_engine_options,
    add_model_options,
    load_assistant,
    name_of_model,
    port_or_any,
    positive,
)
from llava.serve.protocol import (
    HEART_BEAT_S,
    WORKER_PORT,
    Chunk,
    ErrorCode,
    GenerateRequest,
    Registration,
    WorkerStatus,
    add_controller_address,
    address_option,
    key_option,
    parse_object,
    read_body,
)
from llava.serve.register_worker import post_json
from llava.serve.web import (
    check_installed,
    create_plain_app,
    create_server,
    listen,
    stream_chunks,
    warn_if_open,
)
from llava.utils import exit_on_user_error, setup_logging

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llava.assistant import Assistant
    from llava.messages import Request

logger = logging.getLogger(__name__)

RETRY_S = 5.0


class ModelWorker:
    """Answers rendered prompts.

    Args:
        assistant: Answers.
        model_name: What clients ask for.
        concurrency: How many requests are answered at once.

    Attributes:
        queue_length: Requests that are answered or wait.
        on_change: Called when that has changed.
    """

    def __init__(self, assistant: "Assistant", model_name: str, concurrency: int = 5) -> None:
        import anyio

        self.assistant = assistant
        self.model_name = model_name
        self.queue_length = 0
        self.on_change: Callable[[], None] = lambda: None
        self._limiter = anyio.CapacityLimiter(concurrency)

    def status(self) -> WorkerStatus:
        """Return what controllers ask."""
        return WorkerStatus((self.model_name,), 1, self.queue_length)

    async def generate(self, asked: GenerateRequest) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of an answer; what goes wrong is told in the last one."""
        self._change_queue(1)
        try:
            async with self._limiter, aclosing(self._answer(asked)) as texts:
                async for text in texts:
                    yield Chunk(text).encode()
        except PromptTooLongError as error:  # to LLaVA's clients that is an answer, not an error
            yield Chunk(f"{asked.prompt} ({error})").encode()
        except UserError as error:
            yield Chunk(str(error), ErrorCode.WORKER).encode()
        except Exception as error:
            logger.exception("a request failed")
            yield Chunk(f"{type(error).__name__}: {error}", ErrorCode.WORKER).encode()
        finally:
            self._change_queue(-1)

    def _change_queue(self, by: int) -> None:
        self.queue_length += by
        self.on_change()

    async def _answer(self, asked: GenerateRequest) -> AsyncGenerator[str, None]:
        """Yield the prompt and what there is of the answer, at least once.

        Raises:
            UserError: If the request cannot be answered.
        """
        import anyio
        import anyio.to_thread

        from llava.serve.streaming import stream_answer

        request = await anyio.to_thread.run_sync(read_request, asked)
        stream = stream_answer(self.assistant, request, anyio.CapacityLimiter(1))
        text = asked.prompt
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    text += piece
                    yield text
        if text == asked.prompt:
            yield text


def read_request(asked: GenerateRequest) -> "Request":
    """Turn what a client asks into what the assistant answers.

    Raises:
        PromptTooLongError: If no new tokens are asked for.
        UserError: If an image cannot be read, or they are not as many as their placeholders.
    """
    from llava.engine.base import Generation
    from llava.messages import Request
    from llava.serve.images import MAX_IMAGES, image_of_base64

    if len(asked.images) > MAX_IMAGES:
        raise UserError(f"the request has {len(asked.images)} images; at most {MAX_IMAGES} are accepted")
    images = [image_of_base64(text, f"image {number}") for number, text in enumerate(asked.images, start=1)]
    # As in LLaVA's worker, and as in its web page, whose slider goes down to 0.
    samples = asked.temperature > 0.001 and asked.top_p > 0
    if asked.max_new_tokens < 1:
        raise PromptTooLongError(f"{asked.max_new_tokens} new tokens are asked for")
    generation = Generation(
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature if samples else 0.0,
        top_p=asked.top_p if samples else None,
        stop=() if asked.stop is None else (asked.stop,),
    )
    return Request.ask("", *images, prompt=asked.prompt, generation=generation)


class HeartBeat:
    """Keeps a worker known to its controller, from a thread of its own.

    Args:
        controller: Address of the controller.
        worker: Address of the worker.
        status: Returns the worker's.
        key: Of the controller, if it has one.
        interval: Seconds between beats.
        retry: Seconds after which a controller that did not answer is tried again.
    """

    def __init__(
        self,
        controller: str,
        worker: str,
        status: Callable[[], WorkerStatus],
        *,
        key: str | None = None,
        interval: float = HEART_BEAT_S,
        retry: float = RETRY_S,
    ) -> None:
        self._controller = controller
        self._worker = worker
        self._status = status
        self._key = key
        self._interval = interval
        self._retry = retry
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._trouble = ""
        self._is_registered = False
        self._thread = threading.Thread(target=self._run, name="heart-beat", daemon=True)

    def start(self) -> None:
        """Register, and beat from now on."""
        self._thread.start()

    def beat_now(self) -> None:
        """Beat without waiting for the time, because the queue has changed."""
        self._wake.set()

    def stop(self) -> None:
        """Beat no more; a beat that is under way is not waited for."""
        self._ended.set()
        self._wake.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wake.clear()
            try:
                self._beat()
            except UserError as error:
                if str(error) != self._trouble:  # said once, not every time
                    logger.warning("%s; trying again every %g s", error, self._retry)
                self._trouble = str(error)
                self._ended.wait(self._retry)
            else:
                self._trouble = ""
                self._wake.wait(self._interval)

    def _beat(self) -> None:
        """Beat, and register before the first beat and where the controller has lost the worker.

        That it knows the address says nothing at first: another model may have been served there just before.

        Raises:
            UserError: If the controller does not answer, or refuses.
        """
        status = self._status()
        if self._is_registered:
            beat = {"worker_name": self._worker, "queue_length": status.queue_length}
            reply = post_json(f"{self._controller}/receive_heart_beat", beat, self._key)
            self._is_registered = isinstance(reply, dict) and bool(reply.get("exist"))
        if not self._is_registered:
            registration = Registration(self._worker, check_heart_beat=True, status=status)
            post_json(f"{self._controller}/register_worker", registration.body, self._key)
            self._is_registered = True
            logger.info("registered at %s as %s", self._controller, self._worker)


def create_app(worker: ModelWorker, heart_beat: HeartBeat | None = None) -> "FastAPI":
    """Serve a worker at LLaVA's addresses, and register it while the app runs."""
    from fastapi import Request
    from starlette.responses import StreamingResponse

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        if heart_beat is not None:
            worker.on_change = heart_beat.beat_now
            heart_beat.start()
        yield
        if heart_beat is not None:
            heart_beat.stop()

    app = create_plain_app(lifespan)

    @app.post("/worker_get_status")
    async def worker_get_status() -> dict[str, Any]:
        return worker.status().body

    @app.post("/worker_generate_stream")
    async def worker_generate_stream(request: Request) -> StreamingResponse:
        asked = GenerateRequest.parse(parse_object(await read_body(request)))
        return stream_chunks(request, worker.generate(asked))

    return app


def build_parser() -> CommandParser:
    """Build the parser of LLaVA's options, and of those that every command has that loads a model."""
    parser = CommandParser(
        prog="python -m llava.serve.model_worker", description="Answer for a controller's clients."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=port_or_any, default=WORKER_PORT, help=f"(default: {WORKER_PORT})")
    parser.add_argument(
        "--worker-address",
        type=address_option,
        metavar="URL",
        help="where controller and clients reach this worker (default: http://localhost:PORT)",
    )
    add_controller_address(parser)
    parser.add_argument("--key", type=key_option, help="of the controller, if it was started with one")
    parser.add_argument("--no-register", action="store_true", help="serve without a controller")
    parser.add_argument("--model-name", help="what clients ask for (default: from --model-path)")
    parser.add_argument(
        "--limit-model-concurrency",
        type=positive,
        default=5,
        metavar="N",
        help="requests that are answered at once; others wait (default: 5)",
    )
    ignored = parser.add_argument_group("accepted for LLaVA's scripts, and without effect")
    ignored.add_argument("--multi-modal", action="store_true")
    ignored.add_argument("--use-flash-attn", action="store_true", help="it is used where it can be")
    ignored.add_argument("--stream-interval", type=int, default=1, metavar="N")
    add_model_options(parser)
    add_engine_options(parser)
    return parser


def load_worker(options: argparse.Namespace) -> ModelWorker:
    """Load the model that the options name.

    Raises:
        UserError: If it cannot be loaded.
    """
    name = options.model_name or name_of_model(options.model_path)
    return ModelWorker(load_assistant(options), name, options.limit_model_concurrency)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run a worker until it is interrupted.

    Args:
        argv: Arguments; those of the process if not given.

    Raises:
        UserError: If the model cannot be loaded, an option does not serve, or the port is taken.
    """
    options = build_parser().parse_args(argv)
    check_installed()
    setup_logging()
    if options.multi_modal:
        logger.warning("--multi-modal changes nothing: what a model is comes from its files")
    warn_if_open(options.host)
    # Before the model is loaded, which takes the time.
    with listen(options.host, options.port) as listening:
        address = options.worker_address or f"http://localhost:{listening.getsockname()[1]}"
        worker = load_worker(options)
        heart_beat = None
        if not options.no_register:
            heart_beat = HeartBeat(options.controller_address, address, worker.status, key=options.key)
        server = create_server(create_app(worker, heart_beat))
        logger.info("worker for %s at %s", worker.model_name, address)
        server.run(sockets=[listening])


if __name__ == "__main__":
    sys.exit(main())
